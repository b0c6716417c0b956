//! Holds: from the grant to the one end of each.

use core::time::Duration;

use crate::families::Kin;
use crate::fault::{Fault, Step};
use crate::holders::Holders;
use crate::input::ForcedDelay;
use crate::keys::KeyIndex;
use crate::mutation::Mutation;
use crate::requests::{Hold, KeyUse, Part, RequestIndex, Stage};
use crate::timers::Timer;
use crate::{Command, Ending, Engine, HolderId, Instant, KeyGrant, LockKey, LostReason, SmallVec, Token};

impl Engine {
    /// Makes the waiter a holder; the last of its keys said that it may be one.
    pub(crate) fn grant(&mut self, index: RequestIndex) -> Step {
        self.leave_queues(index)?;
        let request = self.requests.get(index)?;
        let mut uses = request.uses.clone();
        let mut limit = self.now + request.hold_max;
        let family = match request.kin {
            Kin::Of(family) => Some(family),
            Kin::None | Kin::Founder(_) => None,
        };
        if let Some(family) = family {
            limit = limit.min(self.families.get(family)?.limit);
        }
        for used in &mut uses {
            self.keys.get_mut(used.key)?.coming -= 1;
            used.token = Some(match (used.part, family) {
                (Part::Joins, Some(family)) => {
                    let bond = self.bond_for(family, used)?;
                    bond.ok_or(Fault::Broken("a family does not have a key that it lets others join"))?.token
                }
                (Part::Bears, _) | (Part::Joins, None) => self.take_token(used.key)?,
            });
        }
        for (used, token) in uses.iter().filter(|used| used.part == Part::Bears).filter_map(with_token) {
            self.keys.get_mut(used.key)?.holders.add(index, used.mode, token);
        }
        self.join_family(index, limit)?;
        let hold = Hold { granted: self.now, limit };
        let request = self.requests.get_mut(index)?;
        request.uses = uses;
        self.requests.set_stage(index, Stage::Holding(hold))?;
        self.timers.set(limit, Timer::HoldLimit(index));
        self.tell_grant(index, hold)?;
        for position in 0..self.requests.get(index)?.uses.len() {
            let used = self.requests.get(index)?.uses.get(position).copied();
            self.pump(used.ok_or(Fault::Broken("a hold has lost a key"))?.key)?;
        }
        Ok(())
    }

    /// Tells a grant; again after a resume, if the first telling may have been lost.
    pub(crate) fn tell_grant(&mut self, index: RequestIndex, hold: Hold) -> Step {
        let request = self.requests.get(index)?;
        let HolderId { session, request: id } = request.holder;
        let waited = hold.granted.saturating_since(request.since);
        let secret = match &request.kin {
            Kin::Of(family) => Some(self.families.get(*family)?.secret),
            Kin::None | Kin::Founder(_) => None,
        };
        let mut granted: SmallVec<[(u8, KeyGrant); 1]> = SmallVec::new();
        for (used, token) in request.uses.iter().filter_map(with_token) {
            let lowest = self.keys.get(used.key)?.holders.lowest();
            let barrier = lowest.filter(|_| !self.mutated(Mutation::BarrierTooHigh)).unwrap_or(token);
            granted.push((used.asked, KeyGrant { token, barrier }));
        }
        granted.sort_unstable_by_key(|(asked, _)| *asked);
        let keys = granted.into_iter().map(|(_, granted)| granted).collect();
        let (seq, valid) = self.promise(session)?;
        self.emit(Command::Grant { session, request: id, keys, secret, waited, seq, valid });
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
        self.lose(index, LostReason::HoldLimit, ForcedDelay::Keep)
    }

    /// Every hold of the key is lost.
    pub(crate) fn lose_holders(&mut self, index: KeyIndex, reason: LostReason) -> Step {
        for request in self.holders_of(index, None)? {
            self.lose(request, reason, ForcedDelay::Keep)?;
        }
        Ok(())
    }

    pub(crate) fn force_release(&mut self, name: &LockKey, token: Option<Token>, delay: ForcedDelay) -> Step {
        let Some(index) = self.keys.find(name) else { return Ok(()) };
        // As one change: nobody is let in beside holds that are still to be lost.
        self.together(|engine| {
            for request in engine.holders_of(index, token)? {
                engine.lose(request, LostReason::Forced, delay)?;
                // Also for those of its family that went before.
                if let (ForcedDelay::Skip, Kin::Of(family)) = (delay, &engine.requests.get(request)?.kin) {
                    let unclean = &mut engine.families.get_mut(*family)?.unclean;
                    unclean.retain(|(key, of), _| *key != index || token.is_some_and(|token| token != *of));
                }
            }
            Ok(())
        })?;
        if delay == ForcedDelay::Skip && token.is_none() {
            self.lift_quarantine(index)?;
        }
        self.pump(index)
    }

    /// The holds that use the key, those that joined others among them; all, or those of one token.
    fn holders_of(&self, index: KeyIndex, token: Option<Token>) -> Step<Vec<RequestIndex>> {
        let mut all = Vec::new();
        for bearer in self.keys.get(index)?.holders.iter() {
            let request = self.requests.get(bearer)?;
            if token.is_some() && request.use_of(index)?.token != token {
                continue;
            }
            match (&request.kin, request.use_of(index)?.token) {
                (Kin::Of(family), Some(token)) => all.extend(self.users_of(*family, index, token)?),
                _ => all.push(bearer),
            }
        }
        Ok(all)
    }

    /// Tells the client to let go. The hold lives on until the client confirms, or can not believe in it any more.
    /// One that was told before stays as it is.
    fn lose(&mut self, index: RequestIndex, reason: LostReason, delay: ForcedDelay) -> Step {
        let request = self.requests.get(index)?;
        let holder = request.holder;
        let Stage::Holding(hold) = request.stage else {
            if let Stage::Ending { delay: before, .. } = &mut self.requests.get_mut(index)?.stage
                && delay == ForcedDelay::Skip
            {
                *before = delay;
            }
            return Ok(());
        };
        let mut promise = self.sessions.get(holder.session)?.promise;
        if self.mutated(Mutation::EndBeforePromise) {
            promise = self.now;
        }
        self.timers.clear(hold.limit, Timer::HoldLimit(index));
        self.timers.set(promise, Timer::PromiseOver(index));
        self.requests.set_stage(index, Stage::Ending { hold, reason, promise, delay })?;
        self.emit(Command::Lost { session: holder.session, request: holder.request, reason });
        self.turn_away_joiners(index)
    }

    pub(crate) fn promise_over(&mut self, index: RequestIndex) -> Step {
        self.end_hold(index, Ending::Unclean)
    }

    /// The one end of every hold.
    pub(crate) fn end_hold(&mut self, index: RequestIndex, ending: Ending) -> Step {
        let request = self.requests.remove(index)?;
        let (granted, delay) = match request.stage {
            Stage::Waiting(_) => return Err(Fault::Broken("the end of a hold that is none")),
            Stage::Holding(hold) => {
                self.timers.clear(hold.limit, Timer::HoldLimit(index));
                (hold.granted, ForcedDelay::Keep)
            }
            Stage::Ending { hold, promise, delay, .. } => {
                self.timers.clear(promise, Timer::PromiseOver(index));
                (hold.granted, delay)
            }
        };
        self.sessions.get_mut(request.holder.session)?.requests.remove(&request.holder.request);
        let quarantine = match (ending, delay) {
            (Ending::Clean | Ending::Unsent, _) | (Ending::Unclean, ForcedDelay::Skip) => None,
            (Ending::Unclean, ForcedDelay::Keep) if self.mutated(Mutation::NoLockDelay) => None,
            (Ending::Unclean, ForcedDelay::Keep) => Some(request.lock_delay),
        };
        let held = self.now.saturating_since(granted);
        match request.kin {
            Kin::Of(family) => {
                self.together(|engine| engine.leave_family(index, &request, family, quarantine, held))?;
            }
            Kin::None | Kin::Founder(_) => {
                for used in &request.uses {
                    self.free_key(*used, quarantine, held)?;
                }
            }
        }
        for used in &request.uses {
            self.pump(used.key)?;
        }
        Ok(())
    }

    /// The last who used the key has released it.
    pub(crate) fn free_key(&mut self, used: KeyUse, quarantine: Option<Duration>, held: Duration) -> Step {
        let token = used.token.ok_or(Fault::Broken("a hold without a token"))?;
        let mut until = quarantine.map(|delay| self.now + delay).filter(|until| *until > self.now);
        let in_group = matches!(self.keys.get(used.key)?.holders, Holders::Group(_));
        if in_group && self.mutated(Mutation::LingeringForgotten) {
            until = None;
        }
        let key = self.keys.get_mut(used.key)?;
        key.learn_hold(held);
        if in_group {
            return self.change_lingering(used.key, |holders| holders.end(token, until));
        }
        key.holders.end(token, None);
        match until {
            Some(until) => self.quarantine(used.key, until),
            None => Ok(()),
        }
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

    pub(crate) fn lingering_over(&mut self, index: KeyIndex) -> Step {
        let now = self.now;
        self.change_lingering(index, |holders| holders.end_lingering(now))?;
        self.pump(index)
    }

    /// An operator says that no earlier work goes on. What an owner before us promised is not ours to know of.
    pub(crate) fn lift_quarantine(&mut self, index: KeyIndex) -> Step {
        self.change_lingering(index, |holders| holders.skip_lingering())?;
        let key = self.keys.get_mut(index)?;
        let inherited = key.inherited;
        if let Some(before) = key.quarantine.take() {
            self.timers.clear(before, Timer::QuarantineOver(index));
        }
        self.quarantine(index, inherited)
    }

    fn change_lingering(&mut self, index: KeyIndex, change: impl FnOnce(&mut Holders)) -> Step {
        let holders = &mut self.keys.get_mut(index)?.holders;
        let before = holders.next_lingering();
        change(holders);
        let after = holders.next_lingering();
        if before != after {
            if let Some(before) = before {
                self.timers.clear(before, Timer::LingeringOver(index));
            }
            if let Some(after) = after {
                self.timers.set(after, Timer::LingeringOver(index));
            }
        }
        Ok(())
    }
}

fn with_token(used: &KeyUse) -> Option<(&KeyUse, Token)> {
    used.token.map(|token| (used, token))
}
