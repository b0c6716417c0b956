//! Holds: from the grant to the one end of each.

use crate::fault::{Fault, Step};
use crate::keys::KeyIndex;
use crate::mutation::Mutation;
use crate::requests::{Hold, RequestIndex, Stage};
use crate::timers::Timer;
use smallvec::smallvec;

use crate::{Command, Ending, Engine, HolderId, Instant, KeyGrant, LostReason, Token};

impl Engine {
    /// Makes the waiter a holder; the key's next step said that it may be one.
    pub(crate) fn grant(&mut self, index: RequestIndex) -> Step {
        self.leave_queue(index)?;
        let request = self.requests.get(index)?;
        let (key, limit) = (request.key, self.now + request.hold_max);
        let hold = Hold { token: self.take_token(key)?, granted: self.now, limit };
        self.keys.get_mut(key)?.holder = Some(index);
        self.requests.set_stage(index, Stage::Holding(hold))?;
        self.timers.set(limit, Timer::HoldLimit(index));
        self.tell_grant(index, hold)
    }

    /// Tells a grant; again after a resume, if the first telling may have been lost.
    pub(crate) fn tell_grant(&mut self, index: RequestIndex, hold: Hold) -> Step {
        let request = self.requests.get(index)?;
        let holder = request.holder;
        let waited = hold.granted.saturating_since(request.since);
        let (seq, valid) = self.promise(holder.session)?;
        let keys = smallvec![KeyGrant { token: hold.token, barrier: hold.token }];
        let HolderId { session, request } = holder;
        self.emit(Command::Grant { session, request, keys, secret: None, waited, seq, valid });
        Ok(())
    }

    fn take_token(&mut self, index: KeyIndex) -> Step<Token> {
        let unguarded = self.mutated(Mutation::SequenceReset);
        let owned = self.keys.owned_mut(index)?;
        let token = owned.next_token().ok_or(Fault::Broken("a grant without a token"))?;
        owned.next_sequence += 1;
        if let Some(contention) = &mut owned.contention {
            contention.grants_left = contention.grants_left.saturating_sub(1);
        }
        let key = self.keys.get_mut(index)?;
        if key.last_token.is_some_and(|last| token <= last) && !unguarded {
            return Err(Fault::TokenWentBack(key.name.clone()));
        }
        key.last_token = Some(token);
        Ok(token)
    }

    pub(crate) fn hold_limit(&mut self, index: RequestIndex) -> Step {
        self.lose(index, LostReason::HoldLimit)
    }

    /// Tells the client to let go. The hold lives on until the client confirms, or can not believe in it any more.
    /// One that was told before stays as it is.
    pub(crate) fn lose(&mut self, index: RequestIndex, reason: LostReason) -> Step {
        let request = self.requests.get(index)?;
        let holder = request.holder;
        let Stage::Holding(hold) = request.stage else { return Ok(()) };
        let mut promise = self.sessions.get(holder.session)?.promise;
        if self.mutated(Mutation::EndBeforePromise) {
            promise = self.now;
        }
        self.timers.clear(hold.limit, Timer::HoldLimit(index));
        self.timers.set(promise, Timer::PromiseOver(index));
        self.requests.set_stage(index, Stage::Ending { hold, reason, promise })?;
        self.emit(Command::Lost { session: holder.session, request: holder.request, reason });
        Ok(())
    }

    pub(crate) fn promise_over(&mut self, index: RequestIndex) -> Step {
        self.end_hold(index, Ending::Unclean)
    }

    /// The one end of every hold.
    pub(crate) fn end_hold(&mut self, index: RequestIndex, ending: Ending) -> Step {
        let request = self.requests.remove(index)?;
        let granted = match request.stage {
            Stage::Waiting(_) => return Err(Fault::Broken("the end of a hold that is none")),
            Stage::Holding(hold) => {
                self.timers.clear(hold.limit, Timer::HoldLimit(index));
                hold.granted
            }
            Stage::Ending { hold, promise, .. } => {
                self.timers.clear(promise, Timer::PromiseOver(index));
                hold.granted
            }
        };
        self.sessions.get_mut(request.holder.session)?.requests.remove(&request.holder.request);
        let now = self.now;
        let key = self.keys.get_mut(request.key)?;
        key.holder = None;
        key.learn_hold(now.saturating_since(granted));
        match ending {
            Ending::Clean | Ending::Unsent => {}
            Ending::Unclean if self.mutated(Mutation::NoLockDelay) => {}
            Ending::Unclean => self.quarantine(request.key, now + request.lock_delay)?,
        }
        self.pump(request.key)
    }

    /// Keeps the key from being granted before `until`, or longer if it is kept for longer already.
    pub(crate) fn quarantine(&mut self, index: KeyIndex, until: Instant) -> Step {
        let now = self.now;
        let key = self.keys.get_mut(index)?;
        if until <= now || key.quarantine.is_some_and(|before| before >= until) {
            return Ok(());
        }
        if let Some(before) = key.quarantine.replace(until) {
            self.timers.clear(before, Timer::QuarantineOver(index));
        }
        self.timers.set(until, Timer::QuarantineOver(index));
        Ok(())
    }

    pub(crate) fn quarantine_over(&mut self, index: KeyIndex) -> Step {
        self.keys.get_mut(index)?.quarantine = None;
        self.pump(index)
    }
}
