//! The invariants of the engine's own state (I1 to I7), asserted after every step of a test. Not in a release build.
#![allow(clippy::panic, clippy::expect_used)]

use std::collections::BTreeSet;

use crate::families::Kin;
use crate::keys::{Key, KeyIndex, Ownership};
use crate::pump::KeyStep;
use crate::requests::{KeyUse, Part, Request, RequestIndex, Stage};
use crate::timers::Timer;
use crate::{Engine, Instant, Mode, Token};

impl Engine {
    /// Asserts the invariants. Walks through everything.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check(&self) {
        if self.fault().is_some() {
            return;
        }
        assert!(!self.settling && self.unsettled.is_empty(), "keys are still to be settled");
        let mut timers = 0;
        timers += self.check_keys();
        timers += self.check_requests();
        timers += self.check_sessions();
        assert_eq!(self.timers.len(), timers, "a timer is about nothing");
        self.check_families();
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
            let outsiders = key.queue.iter().flat_map(|queue| queue.iter()).filter(|entry| entry.part == Part::Bears);
            assert!(outsiders.count() <= self.config.waiters_per_key_max, "I7: too many wait for {name}");
            assert!(key.queue.is_none() || key.waiters() > 0, "an empty queue is kept for {name}");
            self.check_holders(index, key);
            if let Some(until) = key.holders.next_lingering() {
                timers += self.expect_timer(until, Timer::LingeringOver(index));
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

    fn check_holders(&self, index: KeyIndex, key: &Key) {
        let name = &key.name;
        for holder in key.holders.iter() {
            let request = self.requests.get(holder).expect("I1: a holder is no request");
            let used = request.use_of(index).expect("I1: a holder does not use the key");
            assert!(request.stage.is_hold() && used.part == Part::Bears, "I1: {name} is held by something else");
        }
        let modes = key.holders.modes();
        let limits =
            modes.iter().filter_map(|mode| if let Mode::Limit(limit) = mode { Some(limit.get()) } else { None });
        let smallest = limits.clone().min().map_or(usize::MAX, |limit| limit as usize);
        let compatible = modes.len() <= 1
            || modes.iter().all(|mode| *mode == Mode::Shared)
            || (limits.count() == modes.len() && modes.len() <= smallest);
        assert!(compatible, "I1: {name} is held as {modes:?}");
        let coming = self.requests.iter().filter(|(_, request)| {
            let queued = request.queued().map_or(request.uses.len(), <[KeyUse]>::len);
            request.uses.iter().skip(queued).any(|used| used.key == index)
        });
        assert_eq!(coming.count(), key.coming as usize, "I6: requests that come to {name} are miscounted");
    }

    fn check_families(&self) {
        for (index, family) in self.families.iter() {
            assert!(!family.members.is_empty(), "I6: a family without members");
            let joined = family.members.len() + family.waiting.len();
            assert!(joined <= self.config.joins_per_hold_max + 1, "I7: too many join a hold");
            for member in family.members.iter().chain(&family.waiting) {
                let request = self.requests.get(*member).expect("I6: a member is no request");
                assert!(matches!(request.kin, Kin::Of(of) if of == index), "I6: a member is of another family");
                assert_eq!(request.stage.is_hold(), family.members.contains(member), "I5: a member does not hold");
            }
            for member in &family.members {
                for used in &self.requests.get(*member).expect("a member").uses {
                    let users = family.members.iter().filter_map(|user| self.requests.get(*user).ok());
                    let all = users.flat_map(|user| user.uses.iter()).filter(|other| other.key == used.key);
                    let same = all.filter(|other| other.token == used.token);
                    let bearers = same.filter(|other| other.part == Part::Bears).count();
                    assert_eq!(bearers, 1, "I1: one member bears each hold of a key");
                }
            }
        }
    }

    fn check_requests(&self) -> usize {
        let mut timers = 0;
        let mut holds = 0;
        for (index, request) in self.requests.iter() {
            let found = self.sessions.request(request.holder);
            assert_eq!(found, Some(index), "I5: {:?} is not its session's", request.holder);
            holds += usize::from(request.stage.is_hold());
            timers += self.check_stage(index, request);
        }
        assert_eq!(holds, self.requests.holds(), "holds are miscounted");
        assert!(self.requests.waiters() <= self.config.waiters_max, "I7: too many waiters");
        let queued: usize = self.keys.iter().map(|(_, key)| key.waiters()).sum();
        let places: usize = self.requests.iter().filter_map(|(_, request)| request.queued().ok().map(<[_]>::len)).sum();
        assert_eq!(queued, places, "I5: a queue has what is no waiter");
        timers
    }

    fn check_stage(&self, index: RequestIndex, request: &Request) -> usize {
        let session = self.sessions.get(request.holder.session).expect("I6: a request has no session");
        match request.stage {
            Stage::Waiting(waiting) => {
                let queued = request.queued().expect("I5: a waiter has no queue");
                for (position, used) in queued.iter().enumerate() {
                    let key = self.keys.get(used.key).expect("I5: a request has no key");
                    let queue = key.queue.as_ref().expect("I5: a waiter has no queue");
                    let entry = self.entry(index, *used).expect("I5: a waiter has no place");
                    assert!(queue.has(entry, waiting.place), "I4: {:?} lost its place", request.holder);
                    let pinned = position + 1 < queued.len() && used.part == Part::Bears;
                    assert_eq!(
                        queue.pinned_by == Some(index),
                        pinned,
                        "I4: {:?} has not what it goes on from",
                        request.holder
                    );
                }
                assert!(waiting.own_deadline <= waiting.deadline, "I5: {:?} waits too short", request.holder);
                self.expect_timer(waiting.deadline, Timer::WaitOver(index))
            }
            Stage::Holding(hold) => {
                self.check_hold(index, request);
                self.expect_timer(hold.limit, Timer::HoldLimit(index))
            }
            Stage::Ending { promise, .. } => {
                self.check_hold(index, request);
                assert!(promise <= session.promise, "I1: {:?} ends after its promise", request.holder);
                self.expect_timer(promise, Timer::PromiseOver(index))
            }
        }
    }

    fn check_hold(&self, index: RequestIndex, request: &Request) {
        for used in &request.uses {
            let key = self.keys.get(used.key).expect("I5: a request has no key");
            let bears = key.holders.iter().any(|holder| holder == index);
            assert_eq!(bears, used.part == Part::Bears, "I1: {:?} holds without holding", request.holder);
            assert!(used.token.is_some_and(|token| Some(token) <= key.last_token), "I2: a hold without a token");
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
