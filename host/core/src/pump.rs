//! The next step of a key: the one place that decides when to claim, grant, yield and forget.

use core::time::Duration;
use std::collections::BTreeSet;

use crate::engine::Phase;
use crate::fault::{Fault, Step};
use crate::keys::{Key, KeyIndex, Owned, Ownership};
use crate::mutation::Mutation;
use crate::promise::{useful_validity, validity};
use crate::requests::{Place, Request, RequestIndex, Stage};
use crate::{Command, Engine, RejectReason};

/// What a key needs now. Every change to a key is followed by steps until it rests; [`Engine::check`] asserts that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyStep {
    /// Nothing, until something happens.
    Rest,
    /// A try that has to wait for more than the store is answered.
    RefuseTry(RequestIndex),
    Claim,
    /// Raise the lock delay that the record remembers, or the epoch.
    Raise {
        new_epoch: bool,
    },
    /// Give up the ownership, or the claim for it.
    Yield,
    Forget,
    ListIdle,
    UnlistIdle,
    Grant(RequestIndex),
    /// Its wait is over; only its timer is late.
    TimeOut(RequestIndex),
    /// Its session has gone quiet.
    PassOver(RequestIndex),
    /// Nothing can be granted before the lease is renewed.
    Stall,
}

impl Engine {
    /// Makes several changes as one: no key takes a step on part of them.
    pub(crate) fn together(&mut self, changes: impl FnOnce(&mut Self) -> Step) -> Step {
        self.held_back = Some(BTreeSet::new());
        changes(self)?;
        for index in self.held_back.take().unwrap_or_default() {
            self.pump(index)?;
        }
        Ok(())
    }

    /// Takes steps until the key rests.
    pub(crate) fn pump(&mut self, index: KeyIndex) -> Step {
        if let Some(held_back) = &mut self.held_back {
            held_back.insert(index);
            return Ok(());
        }
        loop {
            match self.next_step(index)? {
                KeyStep::Rest => return Ok(()),
                KeyStep::Forget => {
                    self.stalled.remove(&index);
                    return self.keys.forget(index);
                }
                KeyStep::RefuseTry(request) => self.answer_waiter(request, RejectReason::Conflict)?,
                KeyStep::Claim => self.claim(index)?,
                KeyStep::Raise { new_epoch } => self.raise(index, new_epoch)?,
                KeyStep::Yield => self.yield_ownership(index)?,
                KeyStep::ListIdle => self.keys.list_idle(index, self.now)?,
                KeyStep::UnlistIdle => self.keys.unlist_idle(index)?,
                KeyStep::Grant(request) => self.grant(request)?,
                KeyStep::TimeOut(request) => self.answer_timeout(request)?,
                KeyStep::PassOver(request) => {
                    let session = self.requests.get(request)?.holder.session;
                    self.sessions.get_mut(session)?.passed_over = true;
                    self.place_waiter(request, Place::PassedOver)?;
                }
                KeyStep::Stall => {
                    self.stalled.insert(index);
                }
            }
        }
    }

    /// Decides, and changes nothing.
    pub(crate) fn next_step(&self, index: KeyIndex) -> Step<KeyStep> {
        let key = self.keys.get(index)?;
        if !key.is_free()
            && let Some(request) = key.first_try()
        {
            return Ok(KeyStep::RefuseTry(request));
        }
        match &key.ownership {
            Ownership::None if key.waiters() > 0 => Ok(KeyStep::Claim),
            Ownership::None if key.is_free() => Ok(KeyStep::Forget),
            Ownership::None => Ok(KeyStep::Rest),
            Ownership::Claiming { queued, .. } => Ok(self.next_step_claiming(key, *queued)),
            Ownership::Owned(owned) => self.next_step_owned(index, key, owned),
        }
    }

    /// A claim that nobody waits for any more is left to land: were it withdrawn, waits shorter than the store's answer
    /// would never come to anything. It counts as idle meanwhile, so that it is neither kept for ever nor in the way.
    fn next_step_claiming(&self, key: &Key, queued: bool) -> KeyStep {
        let unwanted = key.waiters() == 0;
        let idle = unwanted && key.is_free();
        // A place behind another host would have that host give the key up for nobody.
        if unwanted && (queued || self.phase != Phase::Serving) {
            KeyStep::Yield
        } else if idle != key.is_listed_idle() {
            if idle { KeyStep::ListIdle } else { KeyStep::UnlistIdle }
        } else {
            KeyStep::Rest
        }
    }

    fn next_step_owned(&self, index: KeyIndex, key: &Key, owned: &Owned) -> Step<KeyStep> {
        let live = key.first_live();
        if key.is_free() {
            let spent = owned.next_token().is_none() && owned.pending.is_none();
            let give_up = match &owned.contention {
                _ if self.phase != Phase::Serving => true,
                Some(contention) => contention.exhausted(self.now) || live.is_none(),
                // Used-up tokens come back with the next ownership.
                None => spent && key.waiters() == 0,
            };
            if give_up {
                return Ok(KeyStep::Yield);
            }
        }
        let idle = key.is_free() && key.waiters() == 0;
        if idle != key.is_listed_idle() {
            return Ok(if idle { KeyStep::ListIdle } else { KeyStep::UnlistIdle });
        }
        if owned.pending.is_none() {
            let new_epoch = owned.wants_epoch();
            if new_epoch || key.queue.as_ref().is_some_and(|queue| queue.lock_delay > owned.asked) {
                return Ok(KeyStep::Raise { new_epoch });
            }
        }
        match live {
            Some(request) if key.is_free() => self.next_step_of_first(index, owned, self.first_come(key, request)),
            _ => Ok(KeyStep::Rest),
        }
    }

    /// The key is ours and free, and `first` is whose turn it is.
    fn next_step_of_first(&self, index: KeyIndex, owned: &Owned, first: RequestIndex) -> Step<KeyStep> {
        let request = self.requests.get(first)?;
        let Stage::Waiting(waiting) = request.stage else { return Err(Fault::Broken("a hold stands in a queue")) };
        if waiting.deadline <= self.now {
            return Ok(KeyStep::TimeOut(first));
        }
        let remembered = request.lock_delay <= owned.lock_delay || self.mutated(Mutation::LockDelayNotRaised);
        if owned.next_token().is_none() || !remembered {
            return Ok(KeyStep::Rest);
        }
        Ok(match self.prospect(request)? {
            Prospect::Good => KeyStep::Grant(first),
            Prospect::Quiet => KeyStep::PassOver(first),
            Prospect::LeaseShort if self.stalled.contains(&index) => KeyStep::Rest,
            Prospect::LeaseShort => KeyStep::Stall,
        })
    }

    /// Whether enough of a promise is left for a grant to this waiter to be worth making.
    fn prospect(&self, request: &Request) -> Step<Prospect> {
        let heard = self.sessions.get(request.holder.session)?.heard;
        let useful = useful_validity(&self.config);
        let ttl = self.config.session_ttl;
        let left = |basis: Duration| (heard + validity(basis)).saturating_since(self.now);
        let basis = if self.mutated(Mutation::LeaseIgnored) { ttl } else { self.lease.basis(heard, self.now, ttl) };
        Ok(if left(basis) >= useful {
            Prospect::Good
        } else if left(ttl) < useful {
            Prospect::Quiet
        } else {
            Prospect::LeaseShort
        })
    }

    fn first_come(&self, key: &Key, first: RequestIndex) -> RequestIndex {
        if self.mutated(Mutation::LastComeFirstServed) {
            return key.queue.as_ref().and_then(|queue| queue.last_live()).unwrap_or(first);
        }
        first
    }

    fn claim(&mut self, index: KeyIndex) -> Step {
        let claim = self.next_claim();
        let key = self.keys.get(index)?;
        let lock_delay = key.queue.as_ref().map_or(Duration::ZERO, |queue| queue.lock_delay);
        let name = key.name.clone();
        self.keys.set_ownership(index, Ownership::Claiming { claim, asked: lock_delay, queued: false })?;
        self.emit(Command::ClaimOwnership { key: name, claim, lock_delay, new_epoch: false });
        Ok(())
    }

    fn raise(&mut self, index: KeyIndex, new_epoch: bool) -> Step {
        let claim = self.next_claim();
        let key = self.keys.get(index)?;
        let wanted = key.queue.as_ref().map_or(Duration::ZERO, |queue| queue.lock_delay);
        let name = key.name.clone();
        let owned = self.keys.owned_mut(index)?;
        owned.asked = owned.asked.max(wanted);
        owned.pending = Some(claim);
        owned.epoch_asked |= new_epoch;
        let lock_delay = owned.asked;
        self.emit(Command::ClaimOwnership { key: name, claim, lock_delay, new_epoch });
        Ok(())
    }
}

/// What a grant now would be worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prospect {
    Good,
    /// The session was not heard for too long; its next heartbeat helps.
    Quiet,
    /// The lease has lapsed or soon will; its renewal helps.
    LeaseShort,
}
