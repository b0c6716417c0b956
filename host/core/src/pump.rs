//! The next step of a key: the one place that decides when to claim, grant, yield and forget.

use core::time::Duration;

use crate::engine::Phase;
use crate::fault::{Fault, Step};
use crate::keys::{Key, KeyIndex, Owned, Ownership};
use crate::mutation::Mutation;
use crate::promise::{useful_validity, validity};
use crate::requests::{Part, Place, Request, RequestIndex, Stage, Uses, Waiting};
use crate::{Command, Engine, Mode, RejectReason};

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
    /// Its turn has come here, and it goes on to its next key.
    Pin(RequestIndex),
    /// It joins the hold of this key, and goes on to its next key.
    GoOn(RequestIndex),
    /// It does not have that key any more: it starts again from there.
    StandBack(RequestIndex, KeyIndex),
    /// Nothing can be granted before the lease is renewed.
    Stall,
}

impl Engine {
    /// Makes several changes as one: no key takes a step on part of them.
    pub(crate) fn together(&mut self, changes: impl FnOnce(&mut Self) -> Step) -> Step {
        if self.settling {
            return changes(self);
        }
        self.settling = true;
        changes(self)?;
        self.settle()
    }

    /// Lets the key take its steps, and whatever keys those touch: now, or when what is under way is done.
    pub(crate) fn pump(&mut self, index: KeyIndex) -> Step {
        if self.settling {
            self.unsettled.insert(index);
            return Ok(());
        }
        self.settling = true;
        self.take_steps(index)?;
        self.settle()
    }

    fn settle(&mut self) -> Step {
        while let Some(index) = self.unsettled.pop_first() {
            self.take_steps(index)?;
        }
        self.settling = false;
        Ok(())
    }

    /// Takes steps until the key rests.
    fn take_steps(&mut self, index: KeyIndex) -> Step {
        // It may have been forgotten since it was noted.
        if !self.keys.has(index) {
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
                KeyStep::TimeOut(request) => self.wait_over(request)?,
                KeyStep::PassOver(request) => self.pass_over(request)?,
                KeyStep::Pin(request) => {
                    self.keys.queue_mut(index)?.pinned_by = Some(request);
                    self.join_next_queue(request)?;
                }
                KeyStep::GoOn(joiner) => self.join_next_queue(joiner)?,
                KeyStep::StandBack(request, to) => self.stand_back_to(request, to)?,
                KeyStep::Stall => {
                    self.stalled.insert(index);
                }
            }
        }
    }

    /// Decides, and changes nothing.
    pub(crate) fn next_step(&self, index: KeyIndex) -> Step<KeyStep> {
        let key = self.keys.get(index)?;
        if let Some(request) = key.first_try()
            && !self.may_hold(index, key, request)?
        {
            return Ok(KeyStep::RefuseTry(request));
        }
        if let Some(pinner) = key.pinned_by()
            && !self.has(index, key, pinner)?
        {
            return Ok(KeyStep::StandBack(pinner, index));
        }
        match &key.ownership {
            Ownership::None if key.waiters() > 0 => Ok(KeyStep::Claim),
            Ownership::None if key.is_idle() => Ok(KeyStep::Forget),
            Ownership::None => Ok(KeyStep::Rest),
            Ownership::Claiming { queued, .. } => Ok(self.next_step_claiming(key, *queued)),
            Ownership::Owned(owned) => self.next_step_owned(index, key, owned),
        }
    }

    /// Whether earlier holds leave room for this one, or it joins them.
    fn may_hold(&self, index: KeyIndex, key: &Key, request: RequestIndex) -> Step<bool> {
        let used = self.requests.get(request)?.use_of(index)?;
        let admitted = key.admits(used.mode) || self.admits_wrongly(key, used.mode);
        Ok(used.part == Part::Joins || (admitted && !key.is_promised_away(self.now)))
    }

    fn admits_wrongly(&self, key: &Key, mode: Mode) -> bool {
        let wrongly = match mode {
            Mode::Exclusive => false,
            Mode::Shared => self.mutated(Mutation::SharedBesideExclusive),
            Mode::Limit(_) => self.mutated(Mutation::LimitMiscounted) && key.holders.are_limited(),
        };
        wrongly && key.quarantine.is_none()
    }

    /// Whether a request that has just come for one key would be granted by its key's next step: it need not queue.
    pub(crate) fn is_next_at_once(&self, index: RequestIndex) -> Step<bool> {
        let request = self.requests.get(index)?;
        let Stage::Waiting(Waiting { place: Place::Live, .. }) = request.stage else { return Ok(false) };
        let &[used] = request.uses.as_slice() else { return Ok(false) };
        let key = self.keys.get(used.key)?;
        let Ownership::Owned(owned) = &key.ownership else { return Ok(false) };
        let quiet = key.queue.is_none() && owned.contention.is_none() && !owned.wants_epoch() && !self.settling;
        Ok(quiet
            && key.admits(used.mode)
            && self.is_ready(owned, request)
            && self.phase == Phase::Serving
            && self.prospect(request)? == Prospect::Good)
    }

    /// Whether the request is first in line for a key that is ours, and could hold it now: all but what depends on the
    /// lease and its session.
    fn has(&self, index: KeyIndex, key: &Key, request: RequestIndex) -> Step<bool> {
        let Ownership::Owned(owned) = &key.ownership else { return Ok(false) };
        let asker = self.requests.get(request)?;
        if asker.use_of(index)?.part == Part::Joins {
            return Ok(self.is_remembered(owned, asker));
        }
        Ok(self.is_ready(owned, asker) && key.first_live() == Some(request) && self.may_hold(index, key, request)?)
    }

    /// Whether the store remembers the request's lock delay, and has given us a token for it.
    fn is_ready(&self, owned: &Owned, request: &Request) -> bool {
        self.is_remembered(owned, request) && owned.next_token().is_some()
    }

    fn is_remembered(&self, owned: &Owned, request: &Request) -> bool {
        request.lock_delay <= owned.lock_delay || self.mutated(Mutation::LockDelayNotRaised)
    }

    /// A claim that nobody waits for any more is left to land: were it withdrawn, waits shorter than the store's answer
    /// would never come to anything. It counts as idle meanwhile, so that it is neither kept for ever nor in the way.
    fn next_step_claiming(&self, key: &Key, queued: bool) -> KeyStep {
        let unwanted = key.waiters() == 0;
        let idle = key.is_idle();
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
        let lingers = self.mutated(Mutation::YieldInQuarantine) && key.holders.len() == 0;
        let pinned = key.pinned_by().is_some() && !self.mutated(Mutation::PinnedYielded);
        if (key.is_free() || lingers) && !pinned {
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
        let idle = key.is_idle();
        if idle != key.is_listed_idle() {
            return Ok(if idle { KeyStep::ListIdle } else { KeyStep::UnlistIdle });
        }
        if owned.pending.is_none() {
            let new_epoch = owned.wants_epoch();
            let larger = key.queue.as_ref().is_some_and(|queue| queue.lock_delay > owned.asked);
            if new_epoch || (larger && !self.mutated(Mutation::LockDelayNotRaised)) {
                return Ok(KeyStep::Raise { new_epoch });
            }
        }
        for joiner in key.queue.iter().flat_map(|queue| queue.joining()) {
            let step = self.next_step_of_joiner(index, key, joiner)?;
            if step != KeyStep::Rest {
                return Ok(step);
            }
        }
        match live {
            Some(request) => self.next_step_of_first(index, key, self.first_come(key, request)),
            None => Ok(KeyStep::Rest),
        }
    }

    /// The joiner's family has the key, so it waits for nobody's turn here.
    fn next_step_of_joiner(&self, index: KeyIndex, key: &Key, joiner: RequestIndex) -> Step<KeyStep> {
        let request = self.requests.get(joiner)?;
        if request.frontier()?.key != index || !self.has(index, key, joiner)? {
            return Ok(KeyStep::Rest);
        }
        self.next_step_of_ready(index, joiner, KeyStep::GoOn(joiner))
    }

    /// The key is ours, and `first` is whose turn it is.
    fn next_step_of_first(&self, index: KeyIndex, key: &Key, first: RequestIndex) -> Step<KeyStep> {
        if key.pinned_by() == Some(first) || !self.may_hold(index, key, first)? {
            return Ok(KeyStep::Rest);
        }
        let alone = self.requests.get(first)?.uses.len() == 1;
        let out_of_turn = alone && self.mutated(Mutation::LastComeFirstServed);
        if !out_of_turn && !self.has(index, key, first)? {
            return Ok(KeyStep::Rest);
        }
        self.next_step_of_ready(index, first, KeyStep::Pin(first))
    }

    /// Nothing but the lease, the session and further keys is between the request and its grant; `go_on` leads to those.
    fn next_step_of_ready(&self, index: KeyIndex, first: RequestIndex, go_on: KeyStep) -> Step<KeyStep> {
        let request = self.requests.get(first)?;
        let Stage::Waiting(waiting) = request.stage else { return Err(Fault::Broken("a hold stands in a queue")) };
        if waiting.deadline <= self.now {
            return Ok(KeyStep::TimeOut(first));
        }
        let is_last = request.uses.last().is_some_and(|last| last.key == index) || self.grants_part(request)?;
        Ok(match self.prospect(request)? {
            Prospect::Quiet => KeyStep::PassOver(first),
            _ if !is_last => go_on,
            Prospect::Good => self.grant_or_stand_back(index, first)?,
            Prospect::LeaseShort if self.stalled.contains(&index) => KeyStep::Rest,
            Prospect::LeaseShort => KeyStep::Stall,
        })
    }

    fn grants_part(&self, request: &Request) -> Step<bool> {
        let mut wrongly = self.mutated(Mutation::PartGranted);
        for used in &request.uses {
            wrongly = wrongly && matches!(self.keys.get(used.key)?.ownership, Ownership::Owned(_));
        }
        Ok(wrongly)
    }

    /// All keys must be had at the very moment of the grant: one may have changed whose step is still to come.
    fn grant_or_stand_back(&self, last: KeyIndex, request: RequestIndex) -> Step<KeyStep> {
        for used in self.requests.get(request)?.uses.iter().filter(|used| used.key != last) {
            if !self.has(used.key, self.keys.get(used.key)?, request)? && !self.mutated(Mutation::PartGranted) {
                return Ok(KeyStep::StandBack(request, used.key));
            }
        }
        Ok(KeyStep::Grant(request))
    }

    /// Whether enough of a promise is left for a grant to this waiter to be worth making.
    fn prospect(&self, request: &Request) -> Step<Prospect> {
        let heard = self.sessions.get(request.holder.session)?.heard;
        let useful = useful_validity(&self.config);
        let ttl = self.config.session_ttl;
        if (heard + validity(ttl)).saturating_since(self.now) < useful {
            return Ok(Prospect::Quiet);
        }
        // With so much of the lease left, what is promised within it is useful whenever the session was heard.
        let lease = self.lease.left(self.now);
        let short = lease < useful + (ttl - validity(ttl)) && !self.mutated(Mutation::LeaseIgnored);
        Ok(if short { Prospect::LeaseShort } else { Prospect::Good })
    }

    /// Its session has gone quiet: others go first.
    fn pass_over(&mut self, index: RequestIndex) -> Step {
        let session = self.requests.get(index)?.holder.session;
        self.sessions.get_mut(session)?.passed_over = true;
        self.place_waiter(index, Place::PassedOver)?;
        self.pump_queued(index)
    }

    /// The request does not have the key any more: it leaves the queues of all larger ones, and starts again from there.
    fn stand_back_to(&mut self, request: RequestIndex, index: KeyIndex) -> Step {
        let queue = self.keys.queue_mut(index)?;
        queue.pinned_by = queue.pinned_by.filter(|pinner| *pinner != request);
        let uses = self.requests.get(request)?.uses.clone();
        let kept = uses.iter().position(|used| used.key == index).map_or(0, |position| position + 1);
        self.stand_back(request, u8::try_from(kept).unwrap_or(u8::MAX))?;
        for used in uses.iter().skip(kept) {
            self.pump(used.key)?;
        }
        self.pump(index)
    }

    pub(crate) fn pump_queued(&mut self, index: RequestIndex) -> Step {
        let queued: Uses = self.requests.get(index)?.queued()?.into();
        for used in queued {
            self.pump(used.key)?;
        }
        Ok(())
    }

    fn first_come(&self, key: &Key, first: RequestIndex) -> RequestIndex {
        if !self.mutated(Mutation::LastComeFirstServed) {
            return first;
        }
        let last = key.queue.as_ref().and_then(|queue| queue.last_live());
        let alone = |index: &RequestIndex| self.requests.get(*index).is_ok_and(|request| request.uses.len() == 1);
        last.filter(alone).unwrap_or(first)
    }

    fn claim(&mut self, index: KeyIndex) -> Step {
        let claim = self.next_claim();
        let key = self.keys.get(index)?;
        let mut lock_delay = key.queue.as_ref().map_or(Duration::ZERO, |queue| queue.lock_delay);
        // Holds from before the key was lost may still end uncleanly.
        for holder in key.holders.iter() {
            lock_delay = lock_delay.max(self.requests.get(holder)?.lock_delay);
        }
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
