//! The invariants of the engine's own state (I1 to I7), asserted after every step of a test. Not in a release build.
#![allow(clippy::panic, clippy::expect_used)]

use std::collections::BTreeSet;

use crate::keys::{Key, KeyIndex, Ownership};
use crate::pump::KeyStep;
use crate::requests::{Patience, Request, RequestIndex, Stage};
use crate::timers::Timer;
use crate::{Engine, Instant, Token};

impl Engine {
    /// Asserts the invariants. Walks through everything.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check(&self) {
        if self.fault().is_some() {
            return;
        }
        assert!(self.held_back.is_none(), "keys are still held back");
        let mut timers = 0;
        timers += self.check_keys();
        timers += self.check_requests();
        timers += self.check_sessions();
        assert_eq!(self.timers.len(), timers, "a timer is about nothing");
        self.check_idle_list();
        assert!(self.stalled.iter().all(|key| self.keys.get(*key).is_ok()), "a forgotten key is stalled");
    }

    fn check_keys(&self) -> usize {
        let mut timers = 0;
        let mut owned = 0;
        assert!(self.keys.len() <= self.config.keys_max, "I7: too many keys");
        for (index, key) in self.keys.iter() {
            let name = &key.name;
            assert_eq!(self.keys.find(name), Some(index), "{name} is not found by its name");
            // Nothing may be left to do: a free key is granted (I6, I4), an unwanted one given up.
            match self.next_step(index) {
                Ok(KeyStep::Rest) => {}
                // Time alone makes a session quiet; nothing is lost by passing over its waiter later.
                Ok(KeyStep::PassOver(_)) if self.stalled.contains(&index) => {}
                // The driver is late; its next call catches up.
                Ok(_) if self.next_deadline().is_some_and(|deadline| deadline <= self.now) => {}
                step => panic!("{name} was not served: {step:?}"),
            }
            assert!(key.waiters() <= self.config.waiters_per_key_max, "I7: too many wait for {name}");
            assert!(key.queue.is_none() || key.waiters() > 0, "an empty queue is kept for {name}");
            if let Some(holder) = key.holder {
                let request = self.requests.get(holder).expect("I1: a holder is no request");
                assert!(request.stage.is_hold() && request.key == index, "I1: {name} is held by something else");
            }
            if let Some(until) = key.quarantine {
                timers += self.expect_timer(until, Timer::QuarantineOver(index));
            }
            if let Ownership::Owned(ours) = &key.ownership {
                owned += 1;
                let last = key.last_token.map_or(0, Token::as_u64);
                assert!(
                    ours.next_token().is_none_or(|next| next.as_u64() > last || last == 0),
                    "I2: {name} would repeat a token"
                );
                if let Some(contention) = &ours.contention {
                    let timer = Timer::BudgetOver(index);
                    let over = contention.until <= self.now && !self.timers.has(contention.until, timer);
                    timers += if over { 0 } else { self.expect_timer(contention.until, timer) };
                }
            }
        }
        assert_eq!(owned, self.keys.owned(), "owned keys are miscounted");
        timers
    }

    fn check_requests(&self) -> usize {
        let mut timers = 0;
        let mut holds = 0;
        for (index, request) in self.requests.iter() {
            let found = self.sessions.request(request.holder);
            assert_eq!(found, Some(index), "I5: {:?} is not its session's", request.holder);
            let key = self.keys.get(request.key).expect("I5: a request has no key");
            holds += usize::from(request.stage.is_hold());
            timers += self.check_stage(index, request, key);
        }
        assert_eq!(holds, self.requests.holds(), "holds are miscounted");
        assert!(self.requests.waiters() <= self.config.waiters_max, "I7: too many waiters");
        let queued: usize = self.keys.iter().map(|(_, key)| key.waiters()).sum();
        assert_eq!(queued, self.requests.waiters(), "I5: a queue has what is no waiter");
        timers
    }

    fn check_stage(&self, index: RequestIndex, request: &Request, key: &Key) -> usize {
        let session = self.sessions.get(request.holder.session).expect("I6: a request has no session");
        match request.stage {
            Stage::Waiting(waiting) => {
                let queue = key.queue.as_ref().expect("I5: a waiter has no queue");
                let is_try = waiting.patience == Patience::Try;
                assert!(queue.has(waiting.ticket, waiting.place, is_try), "I4: {:?} lost its place", request.holder);
                assert!(waiting.own_deadline <= waiting.deadline, "I5: {:?} waits too short", request.holder);
                self.expect_timer(waiting.deadline, Timer::WaitOver(index))
            }
            Stage::Holding(hold) => {
                assert_eq!(key.holder, Some(index), "I1: {:?} holds without holding", request.holder);
                self.expect_timer(hold.limit, Timer::HoldLimit(index))
            }
            Stage::Ending { promise, .. } => {
                assert_eq!(key.holder, Some(index), "I1: {:?} holds without holding", request.holder);
                assert!(promise <= session.promise, "I1: {:?} ends after its promise", request.holder);
                self.expect_timer(promise, Timer::PromiseOver(index))
            }
        }
    }

    fn check_sessions(&self) -> usize {
        assert!(self.sessions.len() <= self.config.sessions_max, "I7: too many sessions");
        let mut requests = 0;
        let mut timers = 0;
        for (id, session) in self.sessions.iter() {
            assert!(session.promise <= session.heard + self.config.session_ttl, "I3: {id:?} is promised too much");
            assert!(session.waiters <= self.config.waiters_per_session_max, "I7: {id:?} has too many waiters");
            let waiting = session.requests.values().filter(|index| {
                self.requests.get(**index).is_ok_and(|request| matches!(request.stage, Stage::Waiting(_)))
            });
            assert_eq!(waiting.count(), session.waiters, "the waiters of {id:?} are miscounted");
            requests += session.requests.len();
            assert!(session.looked_at <= session.heard + self.config.session_ttl, "I6: {id:?} is not looked after");
            timers += self.expect_timer(session.looked_at, Timer::SessionSilent(id));
        }
        assert_eq!(requests, self.requests.waiters() + self.requests.holds(), "I5: a request has no session");
        timers
    }

    fn check_idle_list(&self) {
        let idle: BTreeSet<KeyIndex> =
            self.keys.iter().filter(|(_, key)| key.is_listed_idle()).map(|(index, _)| index).collect();
        let mut walked = BTreeSet::new();
        let mut last = Instant::default();
        for (index, since) in self.keys.walk_idle() {
            assert!(since >= last, "idle keys are out of order");
            last = since;
            assert!(walked.insert(index), "the list of idle keys goes in circles");
        }
        assert_eq!(idle, walked, "I6: an idle key is not listed");
    }

    fn expect_timer(&self, at: Instant, timer: Timer) -> usize {
        assert!(self.timers.has(at, timer), "I6: {timer:?} is not set for {at:?}");
        1
    }
}
