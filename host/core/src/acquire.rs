//! Waiters: how a request joins a queue, and every way in which it leaves it without a grant.

use core::time::Duration;

use crate::fault::{Fault, Step};
use crate::keys::{Key, KeyIndex, Ownership};
use crate::mutation::Mutation;
use crate::promise::Lease;
use crate::requests::{Patience, Place, Request, RequestIndex, Stage, Waiting};
use crate::sessions::Link;
use crate::timers::Timer;
use crate::{
    Acquire, Command, Ending, Engine, HolderId, Instant, KeyRequest, Mode, RejectReason, RequestId, SessionId,
};

impl Engine {
    pub(crate) fn acquire(&mut self, session: SessionId, acquire: Acquire) -> Step {
        if !self.knows_session(session) {
            return Ok(());
        }
        let request = acquire.request;
        let seen = self.sessions.get(session)?.last_request;
        if seen.is_some_and(|last| request <= last) {
            if self.sessions.request(HolderId { session, request }).is_none() {
                self.reject(session, request, RejectReason::Invalid, None)?;
            }
            return Ok(());
        }
        self.admit(session, acquire)
    }

    /// Takes a request that has no place yet.
    pub(crate) fn admit(&mut self, session: SessionId, acquire: Acquire) -> Step {
        let request = acquire.request;
        let known = self.sessions.get_mut(session)?;
        known.last_request = known.last_request.max(Some(request));
        if known.requests.contains_key(&request) {
            return Ok(());
        }
        let refused = if self.phase != crate::engine::Phase::Serving {
            Some(RejectReason::Draining)
        } else if known.waiters >= self.config.waiters_per_session_max {
            Some(RejectReason::SessionFull)
        } else if self.requests.waiters() >= self.config.waiters_max {
            Some(RejectReason::QueueFull)
        } else {
            None
        };
        if let Some(reason) = refused {
            return self.reject(session, request, reason, None);
        }
        let [KeyRequest { key: name, mode: Mode::Exclusive }] = acquire.keys.as_slice() else {
            return self.reject(session, request, RejectReason::Invalid, None);
        };
        let key = match self.keys.find(name) {
            Some(key) => key,
            None if self.make_room()? => self.keys.insert(name.clone())?,
            None => return self.reject(session, request, RejectReason::KeysFull, None),
        };
        let tracked = self.keys.get(key)?;
        let taken = !tracked.is_free() || tracked.first_live().is_some();
        if acquire.wait.is_zero() && taken {
            return self.reject(session, request, RejectReason::Conflict, Some(key));
        }
        if tracked.waiters() >= self.config.waiters_per_key_max {
            return self.reject(session, request, RejectReason::QueueFull, Some(key));
        }
        self.enqueue(session, acquire, key)?;
        self.pump(key)
    }

    fn enqueue(&mut self, session: SessionId, acquire: Acquire, key: KeyIndex) -> Step {
        let now = self.now;
        let (patience, wait) = self.patience(acquire.wait);
        let own_deadline = now + wait;
        let deadline =
            if self.waits_for_store_alone(key)? { now + wait.max(self.config.claim_patience) } else { own_deadline };
        let known = self.sessions.get_mut(session)?;
        let place = match known.link {
            Link::Connected => Place::Live,
            Link::Suspended => Place::PassedOver,
        };
        let lock_delay = acquire.lock_delay.min(self.config.lock_delay_max);
        // The ticket is known only once the request has an index.
        let entry = self.keys.get_mut(key)?;
        let index = self.requests.next_index()?;
        let queue = entry.queue.get_or_insert_default();
        let ticket = queue.push(index, place, patience == Patience::Try, lock_delay);
        let stored = self.requests.insert(Request {
            holder: HolderId { session, request: acquire.request },
            key,
            mode: Mode::Exclusive,
            hold_max: acquire.hold.unwrap_or(self.config.hold_max).min(self.config.hold_max),
            lock_delay,
            since: now,
            stage: Stage::Waiting(Waiting { ticket, deadline, own_deadline, patience, place }),
        })?;
        if stored != index {
            return Err(Fault::Broken("a request got another place"));
        }
        known.requests.insert(acquire.request, index);
        known.waiters += 1;
        self.timers.set(deadline, Timer::WaitOver(index));
        Ok(())
    }

    fn patience(&self, wait: Duration) -> (Patience, Duration) {
        if wait.is_zero() {
            (Patience::Try, self.config.claim_patience)
        } else {
            (Patience::Wait, wait.min(self.config.wait_max))
        }
    }

    /// Whether nothing but the store's answer stands between the key and one more waiter. Its wait is then stretched to
    /// the claim patience: however short, it must not end before the store can have answered.
    fn waits_for_store_alone(&self, key: KeyIndex) -> Step<bool> {
        let key = self.keys.get(key)?;
        let unanswered = matches!(key.ownership, Ownership::None | Ownership::Claiming { queued: false, .. });
        Ok(unanswered && key.is_free() && key.waiters() == 0)
    }

    /// The store has answered, and something else stands in the way: a stretched wait is cut to what was asked for.
    pub(crate) fn end_store_patience(&mut self, key: KeyIndex) -> Step {
        // A wait is stretched only at the head of the queue.
        let Some(first) = self.keys.get(key)?.queue.as_ref().and_then(|queue| queue.first()) else { return Ok(()) };
        let own_deadline = self.requests.waiting(first)?.own_deadline;
        self.advance_deadline(first, own_deadline)
    }

    fn advance_deadline(&mut self, index: RequestIndex, deadline: Instant) -> Step {
        let waiting = self.requests.waiting(index)?;
        if deadline < waiting.deadline {
            let before = core::mem::replace(&mut waiting.deadline, deadline);
            waiting.own_deadline = waiting.own_deadline.min(deadline);
            self.timers.clear(before, Timer::WaitOver(index));
            self.timers.set(deadline, Timer::WaitOver(index));
        }
        Ok(())
    }

    /// True if one more key may be tracked; gives up the one that has been idle longest if that helps.
    fn make_room(&mut self) -> Step<bool> {
        if self.keys.len() < self.config.keys_max {
            return Ok(true);
        }
        let Some((idle, _)) = self.keys.longest_idle() else { return Ok(false) };
        self.yield_ownership(idle)?;
        self.pump(idle)?;
        Ok(true)
    }

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

    /// After a resume: the wait ends when the client says, if that is earlier.
    pub(crate) fn hasten(&mut self, index: RequestIndex, wait: Duration) -> Step {
        let (_, wait) = self.patience(wait);
        self.advance_deadline(index, self.now + wait)
    }

    pub(crate) fn wait_over(&mut self, index: RequestIndex) -> Step {
        let key = self.requests.get(index)?.key;
        self.answer_timeout(index)?;
        self.pump(key)
    }

    /// Removes a waiter whose time is up. The caller pumps its key.
    pub(crate) fn answer_timeout(&mut self, index: RequestIndex) -> Step {
        if self.mutated(Mutation::TimeoutNotTold) {
            return self.forget_waiter(index).map(drop);
        }
        let request = self.requests.get(index)?;
        let reason = self.timeout_reason(self.keys.get(request.key)?, request);
        self.answer_waiter(index, reason)
    }

    /// Removes a waiter and rejects it. The caller pumps its key.
    pub(crate) fn answer_waiter(&mut self, index: RequestIndex, reason: RejectReason) -> Step {
        let request = self.forget_waiter(index)?;
        let HolderId { session, request: id } = request.holder;
        self.reject(session, id, reason, Some(request.key))
    }

    /// Removes a waiter without a word.
    pub(crate) fn drop_waiter(&mut self, index: RequestIndex) -> Step {
        let request = self.forget_waiter(index)?;
        self.pump(request.key)
    }

    fn forget_waiter(&mut self, index: RequestIndex) -> Step<Request> {
        self.leave_queue(index)?;
        let request = self.requests.remove(index)?;
        self.sessions.get_mut(request.holder.session)?.requests.remove(&request.holder.request);
        Ok(request)
    }

    /// Takes a waiter out of its queue; it stays in the tables.
    pub(crate) fn leave_queue(&mut self, index: RequestIndex) -> Step {
        let waiting = *self.requests.waiting(index)?;
        let request = self.requests.get(index)?;
        self.timers.clear(waiting.deadline, Timer::WaitOver(index));
        self.sessions.get_mut(request.holder.session)?.waiters -= 1;
        let key = self.keys.get_mut(request.key)?;
        let queue = key.queue.as_mut().ok_or(Fault::Broken("a waiter has no queue"))?;
        queue.remove(waiting.ticket, waiting.place);
        if queue.len() == 0 {
            key.queue = None;
        }
        Ok(())
    }

    fn timeout_reason(&self, key: &Key, request: &Request) -> RejectReason {
        let is_try = matches!(request.stage, Stage::Waiting(Waiting { patience: Patience::Try, .. }));
        let lease_good = matches!(self.lease, Lease::Until(until) if self.now < until);
        let store_to_blame = match &key.ownership {
            Ownership::Owned(owned) if owned.next_token().is_none() => return RejectReason::TokensExhausted,
            // Free and ours, and still no grant: the lease or the record lags behind.
            Ownership::Owned(owned) => {
                is_try || (key.is_free() && (!lease_good || request.lock_delay > owned.lock_delay))
            }
            Ownership::Claiming { queued: true, .. } if is_try => return RejectReason::Conflict,
            Ownership::Claiming { queued: true, .. } => false,
            Ownership::Claiming { queued: false, .. } | Ownership::None => {
                is_try || key.heard.is_none_or(|heard| heard < request.since)
            }
        };
        if store_to_blame { RejectReason::StoreUnavailable } else { RejectReason::WaitTimeout }
    }

    pub(crate) fn reject(
        &mut self,
        session: SessionId,
        request: RequestId,
        reason: RejectReason,
        key: Option<KeyIndex>,
    ) -> Step {
        let (queue_length, retry_after) = match key {
            None => (0, None),
            Some(key) => {
                let key = self.keys.get(key)?;
                let hint = match reason {
                    RejectReason::Conflict | RejectReason::WaitTimeout | RejectReason::QueueFull => self.estimate(key),
                    _ => None,
                };
                (key.waiters(), hint)
            }
        };
        self.emit(Command::Reject { session, request, reason, retry_after, queue_length });
        Ok(())
    }

    /// When one more request would get its turn: the rest of the quarantine, and a typical hold for everyone before
    /// it. `None` if nothing is known.
    fn estimate(&self, key: &Key) -> Option<Duration> {
        let before = u32::try_from(key.waiters() + usize::from(key.holder.is_some())).unwrap_or(u32::MAX);
        let holds = key.typical_hold_us.map(|us| Duration::from_micros(u64::from(us)).saturating_mul(before));
        let quarantine = key.quarantine.map(|until| until.saturating_since(self.now));
        match (holds, quarantine) {
            (None, None) => None,
            (holds, quarantine) => Some(holds.unwrap_or_default().saturating_add(quarantine.unwrap_or_default())),
        }
    }
}
