//! Waiters: their places, their deadlines, and every way in which they leave their queues without a grant.

use core::time::Duration;

use crate::families::Kin;
use crate::fault::{Fault, Step};
use crate::keys::{Key, KeyIndex, Ownership};
use crate::mutation::Mutation;
use crate::promise::Lease;
use crate::queue::Entry;
use crate::requests::{KeyUse, Part, Patience, Place, Request, RequestIndex, Stage, Waiting};
use crate::timers::Timer;
use crate::{Ending, Engine, HolderId, Instant, RejectReason, RequestId, SessionId};

impl Engine {
    pub(crate) fn cancel(&mut self, session: SessionId, request: RequestId) -> Step {
        // The client never sent the request on: if it was granted meanwhile, that is how the hold ended.
        self.release(session, request, Ending::Unsent)
    }

    pub(crate) fn release(&mut self, session: SessionId, request: RequestId, ending: Ending) -> Step {
        if !self.knows_session(session) {
            return Ok(());
        }
        let Some(index) = self.sessions.request(HolderId { session, request }) else { return Ok(()) };
        match self.requests.get(index)?.stage {
            Stage::Waiting(_) => self.drop_waiter(index),
            Stage::Holding(_) | Stage::Ending { .. } => self.end_hold(index, ending),
        }
    }

    /// The store has answered, and something else stands in the way: a stretched wait is cut to what was asked for.
    pub(crate) fn end_store_patience(&mut self, key: KeyIndex) -> Step {
        // A wait is stretched only at the head of the queue.
        let first = self.keys.get(key)?.queue.as_ref().and_then(|queue| queue.in_line().next());
        let Some(first) = first.map(|entry| entry.request) else { return Ok(()) };
        let own_deadline = self.requests.waiting(first)?.own_deadline;
        self.move_deadline(first, |deadline| deadline.min(own_deadline))
    }

    /// While the store alone keeps the request waiting, its wait is stretched: all in all by no more than the patience.
    pub(crate) fn stretch_wait(&mut self, index: RequestIndex, stretched: bool) -> Step {
        let patient_until = self.requests.get(index)?.since + self.config.claim_patience;
        let own_deadline = self.requests.waiting(index)?.own_deadline;
        self.move_deadline(index, |_| if stretched { own_deadline.max(patient_until) } else { own_deadline })
    }

    /// After a resume: the wait ends when the client says, if that is earlier.
    pub(crate) fn hasten(&mut self, index: RequestIndex, wait: Duration) -> Step {
        let wait = if wait.is_zero() { self.config.claim_patience } else { wait };
        let until = self.now + wait;
        let waiting = self.requests.waiting(index)?;
        waiting.own_deadline = waiting.own_deadline.min(until);
        self.move_deadline(index, |deadline| deadline.min(until))
    }

    fn move_deadline(&mut self, index: RequestIndex, change: impl FnOnce(Instant) -> Instant) -> Step {
        let waiting = self.requests.waiting(index)?;
        let before = waiting.deadline;
        waiting.deadline = change(before);
        let after = waiting.deadline;
        if after != before {
            self.timers.clear(before, Timer::WaitOver(index));
            self.timers.set(after, Timer::WaitOver(index));
        }
        Ok(())
    }

    /// Removes a waiter whose time is up.
    pub(crate) fn wait_over(&mut self, index: RequestIndex) -> Step {
        if self.mutated(Mutation::TimeoutNotTold) {
            let request = self.forget_waiter(index)?;
            return self.pump_all(&request);
        }
        let request = self.requests.get(index)?;
        let used = request.frontier()?;
        let key = self.keys.get(used.key)?;
        let may_hold = used.part == Part::Joins || key.admits(used.mode);
        let reason = self.timeout_reason(key, request, may_hold);
        self.answer_waiter(index, reason)
    }

    /// Removes a waiter and rejects it.
    pub(crate) fn answer_waiter(&mut self, index: RequestIndex, reason: RejectReason) -> Step {
        let to_blame = self.requests.get(index)?.frontier()?;
        let request = self.forget_waiter(index)?;
        let HolderId { session, request: id } = request.holder;
        self.reject(session, id, reason, Some(to_blame))?;
        self.pump_all(&request)
    }

    /// Removes a waiter without a word.
    pub(crate) fn drop_waiter(&mut self, index: RequestIndex) -> Step {
        let request = self.forget_waiter(index)?;
        self.pump_all(&request)
    }

    fn pump_all(&mut self, request: &Request) -> Step {
        for used in &request.uses {
            self.pump(used.key)?;
        }
        Ok(())
    }

    fn forget_waiter(&mut self, index: RequestIndex) -> Step<Request> {
        self.leave_queues(index)?;
        let request = self.requests.remove(index)?;
        for used in &request.uses {
            self.keys.get_mut(used.key)?.coming -= 1;
        }
        if let Kin::Of(family) = request.kin {
            self.families.get_mut(family)?.waiting.remove(&index);
        }
        self.sessions.get_mut(request.holder.session)?.requests.remove(&request.holder.request);
        Ok(request)
    }

    /// Takes a waiter out of its queues, as if all its keys were still to come; it stays in the tables, and is no
    /// waiter of its session any more.
    pub(crate) fn leave_queues(&mut self, index: RequestIndex) -> Step {
        self.stand_back(index, 0)?;
        let waiting = *self.requests.waiting(index)?;
        self.timers.clear(waiting.deadline, Timer::WaitOver(index));
        let session = self.requests.get(index)?.holder.session;
        self.sessions.get_mut(session)?.waiters -= 1;
        Ok(())
    }

    /// Leaves all queues but the first `kept`: what it cannot have any more was needed for those behind.
    pub(crate) fn stand_back(&mut self, index: RequestIndex, kept: u8) -> Step {
        while let Waiting { queues, place, .. } = *self.requests.waiting(index)?
            && queues > kept
        {
            let used = self.requests.get(index)?.frontier()?;
            let entry = self.entry(index, used)?;
            self.requests.waiting(index)?.queues = queues - 1;
            let key = self.keys.get_mut(used.key)?;
            key.coming += 1;
            let queue = key.queue.as_mut().ok_or(Fault::Broken("a waiter has no queue"))?;
            queue.remove(entry, place);
            if queue.len() == 0 {
                key.queue = None;
            }
        }
        Ok(())
    }

    /// How the request stands in the queue of that key.
    pub(crate) fn entry(&self, index: RequestIndex, used: KeyUse) -> Step<Entry> {
        let request = self.requests.get(index)?;
        let is_try = matches!(request.stage, Stage::Waiting(Waiting { patience: Patience::Try, .. }));
        Ok(Entry { request: index, ticket: request.order, mode: used.mode, part: used.part, is_try })
    }

    /// Takes a waiter out of its turn, or back into it. The caller pumps its keys.
    pub(crate) fn place_waiter(&mut self, index: RequestIndex, to: Place) -> Step {
        let waiting = self.requests.waiting(index)?;
        let from = core::mem::replace(&mut waiting.place, to);
        for position in 0..waiting.queues {
            let used = self.requests.get(index)?.queued()?.get(usize::from(position)).copied();
            let used = used.ok_or(Fault::Broken("a request queues for what it has not asked"))?;
            let entry = self.entry(index, used)?;
            if to == Place::Live && self.mutated(Mutation::PlacesForgotten) {
                self.keys.queue_mut(used.key)?.remove(entry, from);
            } else {
                self.keys.queue_mut(used.key)?.shift(entry, from, to);
            }
        }
        Ok(())
    }

    fn timeout_reason(&self, key: &Key, request: &Request, may_hold: bool) -> RejectReason {
        let is_try = matches!(request.stage, Stage::Waiting(Waiting { patience: Patience::Try, .. }));
        let lease_good = matches!(self.lease, Lease::Until(until) if self.now < until);
        let store_to_blame = match &key.ownership {
            Ownership::Owned(owned) if owned.next_token().is_none() => return RejectReason::TokensExhausted,
            Ownership::Owned(_) if is_try && !may_hold => return RejectReason::Conflict,
            // Ours, and nobody in the way, and still no grant: the lease or the record lags behind.
            Ownership::Owned(owned) => is_try || (may_hold && (!lease_good || request.lock_delay > owned.lock_delay)),
            Ownership::Claiming { queued: true, .. } if is_try => return RejectReason::Conflict,
            Ownership::Claiming { queued: true, .. } => false,
            Ownership::Claiming { queued: false, .. } | Ownership::None => {
                is_try || key.heard.is_none_or(|heard| heard < request.since)
            }
        };
        if store_to_blame { RejectReason::StoreUnavailable } else { RejectReason::WaitTimeout }
    }
}
