//! What the store tells: ownership of keys, the lease; and the end of the incarnation.

use core::time::Duration;

use crate::engine::Phase;
use crate::fault::{Fault, Step};
use crate::keys::{Contention, KeyIndex, Owned, Ownership};
use crate::mutation::Mutation;
use crate::promise::Lease;
use crate::timers::Timer;
use crate::{ClaimId, Command, Engine, Epoch, HandoffBudget, Instant, LockKey, LostReason, RejectReason, Token};

impl Engine {
    pub(crate) fn ownership_gained(
        &mut self,
        name: LockKey,
        claim: ClaimId,
        epoch: Epoch,
        lock_delay: Duration,
        quarantined_until: Instant,
    ) -> Step {
        let Some(index) = self.keys.find(&name) else {
            // A claim that was withdrawn has landed: no record may stay behind without a key.
            self.emit(Command::YieldOwnership { key: name });
            return Ok(());
        };
        match &self.keys.get(index)?.ownership {
            Ownership::Claiming { claim: pending, .. } if *pending == claim => {
                self.begin_ownership(index, claim, epoch, lock_delay)?;
            }
            Ownership::Owned(owned) if owned.pending == Some(claim) => {
                self.renew_ownership(index, claim, epoch, lock_delay)?;
            }
            // An older claim's answer; the newer one decides.
            Ownership::Claiming { .. } | Ownership::Owned(_) => return Ok(()),
            Ownership::None => {
                self.emit(Command::YieldOwnership { key: name });
                return Ok(());
            }
        }
        if !self.mutated(Mutation::PredecessorIgnored) {
            let key = self.keys.get_mut(index)?;
            key.inherited = key.inherited.max(quarantined_until);
            self.quarantine(index, quarantined_until)?;
        }
        if !self.keys.get(index)?.is_free() {
            self.end_store_patience(index)?;
        }
        self.pump(index)
    }

    fn begin_ownership(&mut self, index: KeyIndex, claim: ClaimId, epoch: Epoch, lock_delay: Duration) -> Step {
        let key = self.keys.get(index)?;
        let asked = match key.ownership {
            Ownership::Claiming { asked, .. } => asked.max(lock_delay),
            _ => lock_delay,
        };
        // An epoch past the range of tokens gives none; that is told by the rejects.
        if Token::new(epoch, 0).is_some_and(|first| key.last_token.is_some_and(|last| first <= last)) {
            return Err(Fault::EpochWentBack { key: key.name.clone(), epoch });
        }
        let owned = Owned {
            claim,
            epoch,
            next_sequence: 0,
            lock_delay,
            asked,
            pending: None,
            epoch_asked: false,
            contention: None,
        };
        self.keys.set_ownership(index, Ownership::Owned(owned))?;
        Ok(())
    }

    fn renew_ownership(&mut self, index: KeyIndex, claim: ClaimId, epoch: Epoch, lock_delay: Duration) -> Step {
        let reset = self.mutated(Mutation::SequenceReset);
        let owned = self.keys.owned_mut(index)?;
        if epoch < owned.epoch {
            let key = self.keys.get(index)?.name.clone();
            return Err(Fault::EpochWentBack { key, epoch });
        }
        if epoch > owned.epoch || reset {
            owned.next_sequence = 0;
            owned.epoch_asked = false;
        }
        owned.epoch = epoch;
        owned.claim = claim;
        owned.lock_delay = lock_delay;
        owned.pending = None;
        Ok(())
    }

    pub(crate) fn ownership_queued(&mut self, name: &LockKey, answered: ClaimId) -> Step {
        let Some(index) = self.keys.find(name) else {
            // A claim that was withdrawn has queued: no place may stay behind without a key.
            self.emit(Command::YieldOwnership { key: name.clone() });
            return Ok(());
        };
        match &mut self.keys.get_mut(index)?.ownership {
            Ownership::Claiming { claim, queued, .. } if *claim == answered => *queued = true,
            // Whoever queues for a record does not have it: it is another's by now.
            Ownership::Owned(owned) if owned.pending == Some(answered) => {
                let asked = owned.asked;
                self.drop_ownership(index)?;
                self.keys.set_ownership(index, Ownership::Claiming { claim: answered, asked, queued: true })?;
                self.lose_holders(index, LostReason::Lease)?;
            }
            // An older claim's answer; the newer one decides.
            Ownership::Claiming { .. } | Ownership::Owned(_) => return Ok(()),
            Ownership::None => {
                self.emit(Command::YieldOwnership { key: name.clone() });
                return Ok(());
            }
        }
        self.end_store_patience(index)?;
        self.pump(index)
    }

    pub(crate) fn ownership_refused(&mut self, name: &LockKey, refused: ClaimId) -> Step {
        let Some(index) = self.keys.find(name) else { return Ok(()) };
        let now = self.now;
        match &mut self.keys.get_mut(index)?.ownership {
            Ownership::Claiming { claim, .. } if *claim == refused => {
                self.keys.set_ownership(index, Ownership::None)?;
            }
            // The record is ours, but of no more use: it goes as soon as the key is free.
            Ownership::Owned(owned) if owned.pending == Some(refused) => {
                owned.pending = None;
                owned.epoch_asked = true;
                self.contend(index, Contention { grants_left: 0, until: now })?;
            }
            _ => return Ok(()),
        }
        self.together(|engine| {
            engine.reject_waiters(index, RejectReason::StoreUnavailable)?;
            engine.pump(index)
        })
    }

    pub(crate) fn ownership_contended(&mut self, name: &LockKey) -> Step {
        let Some(index) = self.keys.find(name) else { return Ok(()) };
        let mut budget = self.config.handoff_budget;
        if self.mutated(Mutation::BudgetIgnored) {
            budget = HandoffBudget { grants: u32::MAX, time: self.config.wait_max };
        }
        let until = self.now + budget.time;
        match &self.keys.get(index)?.ownership {
            Ownership::Owned(owned) if owned.contention.is_none() => {}
            _ => return Ok(()),
        }
        self.contend(index, Contention { grants_left: budget.grants, until })?;
        self.pump(index)
    }

    fn contend(&mut self, index: KeyIndex, contention: Contention) -> Step {
        let owned = self.keys.owned_mut(index)?;
        if let Some(before) = owned.contention.replace(Box::new(contention)) {
            self.timers.clear(before.until, Timer::BudgetOver(index));
        }
        if contention.until > self.now {
            self.timers.set(contention.until, Timer::BudgetOver(index));
        }
        Ok(())
    }

    pub(crate) fn ownership_lost(&mut self, name: &LockKey) -> Step {
        let Some(index) = self.keys.find(name) else { return Ok(()) };
        if !matches!(self.keys.get(index)?.ownership, Ownership::Owned(_)) {
            return Ok(());
        }
        self.drop_ownership(index)?;
        self.lose_holders(index, LostReason::Lease)?;
        self.pump(index)
    }

    pub(crate) fn lease_renewed(&mut self, until: Instant) -> Step {
        self.lease = self.lease.renewed(until);
        for index in core::mem::take(&mut self.stalled) {
            self.pump(index)?;
        }
        Ok(())
    }

    pub(crate) fn lease_lost(&mut self) -> Step {
        self.lease = Lease::None;
        self.together(|engine| {
            for index in engine.keys.indices() {
                engine.drop_ownership(index)?;
                engine.lose_holders(index, LostReason::Lease)?;
                engine.pump(index)?;
            }
            Ok(())
        })
    }

    pub(crate) fn drain(&mut self) -> Step {
        if self.phase != Phase::Serving {
            return Ok(());
        }
        self.phase = Phase::Draining;
        self.together(|engine| {
            for index in engine.keys.indices() {
                engine.reject_waiters(index, RejectReason::Draining)?;
                engine.pump(index)?;
            }
            Ok(())
        })
    }

    /// Gives the record back, or the place in its queue. The key stays until it is of no more use.
    pub(crate) fn yield_ownership(&mut self, index: KeyIndex) -> Step {
        self.drop_ownership(index)?;
        let key = self.keys.get(index)?.name.clone();
        self.emit(Command::YieldOwnership { key });
        Ok(())
    }

    /// Forgets what the store said about the key.
    fn drop_ownership(&mut self, index: KeyIndex) -> Step {
        let now = self.now;
        let heard = match self.keys.set_ownership(index, Ownership::None)? {
            Ownership::Owned(Owned { contention, .. }) => {
                if let Some(contention) = contention {
                    self.timers.clear(contention.until, Timer::BudgetOver(index));
                }
                true
            }
            Ownership::Claiming { queued, .. } => queued,
            Ownership::None => false,
        };
        self.keys.unlist_idle(index)?;
        if heard {
            self.keys.get_mut(index)?.heard = Some(now);
        }
        Ok(())
    }

    /// Answers every waiter of the key, first come first. The caller sees to it that no key takes a step meanwhile.
    fn reject_waiters(&mut self, index: KeyIndex, reason: RejectReason) -> Step {
        while let Some(request) = self.keys.get(index)?.queue.as_ref().and_then(|queue| queue.first()) {
            self.answer_waiter(request, reason)?;
        }
        Ok(())
    }
}
