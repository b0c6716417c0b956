//! Waiters that leave for another session, and what is to be known for choosing one.

use super::farewells::Farewell;
use super::link::Link;
use super::{DECLINED_FOR, Names, Rejection, RequestRef, Session, TICK, WAITERS_MAX, Waiter};
use crate::clock::Instant;

/// What a look at the stream says about the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Nothing: no stream is tried.
    Quiet,
    /// A stream is being opened, and nothing speaks against it.
    Trying,
    /// The host answers.
    Live {
        /// The send of the newest heartbeat that it has answered.
        heard: Instant,
        /// Whether its word is good for any time at all, which it is not without a lease in its store, and whether it
        /// can use its store.
        able: bool,
    },
    /// The last attempt failed, or the greeting is overdue.
    Failed,
}

/// Why a host does not serve a waiter that another one may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decline {
    /// It cannot be reached.
    Unreachable,
    /// It did not answer in time, or its grant was not of use in time.
    Late,
    /// It said that its store does not answer.
    NoStore,
    /// It said that it does not know the hold to join.
    NoSuchHold,
}

impl Decline {
    /// What the request is told if nobody else serves it.
    pub fn rejection(self) -> Rejection {
        match self {
            Self::Unreachable | Self::Late | Self::NoStore => Rejection::HostUnavailable,
            Self::NoSuchHold => Rejection::NoSuchHold,
        }
    }
}

const _: () = assert!(turnstile_rules::CLUSTERS_MAX <= u16::BITS as usize);

/// Some of the filter's clusters, by their places in its list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterSet(u16);

impl ClusterSet {
    /// Adds one.
    pub fn insert(&mut self, index: usize) {
        self.0 |= Self::bit(index);
    }

    /// Whether it is one of them.
    pub fn contains(self, index: usize) -> bool {
        self.0 & Self::bit(index) != 0
    }

    fn bit(index: usize) -> u16 {
        u32::try_from(index).ok().and_then(|index| 1_u16.checked_shl(index)).unwrap_or_default()
    }
}

impl Waiter {
    /// The names of its keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.acquire.keys.iter().map(|request| request.key.as_str())
    }

    /// Whether its wait is over. A try has none.
    pub fn has_waited(&self, now: Instant) -> bool {
        self.asked < self.deadline && self.deadline <= now
    }

    /// The clusters whose hosts were asked, and would not serve it.
    pub fn declined_by(&self) -> ClusterSet {
        self.declined_by
    }

    /// One more of them. What others said before it was asked here for a while is no news any more: they may be asked
    /// again. (Not so who said that they do not know a hold: that search must end.)
    pub fn note_decline(&mut self, now: Instant, index: usize, decline: Decline) {
        if matches!(decline, Decline::NoStore | Decline::Late) && now >= self.since + DECLINED_FOR {
            self.declined_by = ClusterSet::default();
        }
        self.declined_by.insert(index);
    }

    /// The secret of the hold that it wants to join; empty if it wants none.
    pub fn reentry_secret(&self) -> &[u8] {
        &self.acquire.reentry_secret
    }
}

impl Session {
    /// What there is to be known about the host.
    pub fn sign(&self, now: Instant) -> Sign {
        match (&self.link, &self.identity) {
            (Link::Idle | Link::Waking, _) => Sign::Quiet,
            // It answers, but takes nothing on.
            (Link::Live { .. }, _) if self.draining => Sign::Trying,
            (Link::Live { .. }, Some(identity)) => {
                Sign::Live { heard: identity.heard, able: self.able && !self.store.is_on(now) }
            }
            (Link::Broken { .. } | Link::Greeting { .. }, _) if self.failures > 0 => Sign::Failed,
            (Link::Greeting { overdue: Some(since), .. }, _) if now >= *since + TICK => Sign::Failed,
            (Link::Broken { .. } | Link::Greeting { .. } | Link::Live { .. }, _) => Sign::Trying,
        }
    }

    /// The name of the host's incarnation, while the session lives or may be resumed.
    pub fn incarnation(&self) -> Option<&str> {
        self.identity.as_ref().map(|identity| identity.incarnation.as_str())
    }

    /// Whether it takes one more waiter.
    pub fn has_room(&self) -> bool {
        self.waiters.len() < WAITERS_MAX
    }

    /// The numbers that those who wait have in this session, the oldest first.
    pub fn waiters(&self) -> impl Iterator<Item = u64> {
        self.waiters.keys().copied()
    }

    /// Who waits by this number.
    pub fn waiter(&self, id: u64) -> Option<&Waiter> {
        self.waiters.get(&id)
    }

    /// Takes a waiter out. If its host may know it, it is told; should it have been granted meanwhile, it ends unsent.
    pub fn take_waiter(&mut self, id: u64) -> Option<Waiter> {
        let waiter = self.waiters.remove(&id)?;
        self.ids.remove(&waiter.owner);
        if waiter.sent {
            self.say_farewell(id, Farewell::Cancel);
        }
        Some(waiter)
    }

    /// A waiter of another session asks here from now on, with what is left of its wait. Many may come at once, from
    /// many proxies: so a first stream is opened after a short pause.
    pub fn adopt(&mut self, now: Instant, waiter: Waiter) {
        if self.link == Link::Idle {
            self.failures = 0;
            self.backoff.reset();
            self.link = Link::Broken { retry_at: now + self.backoff.pause() };
        }
        self.used = now;
        // Every host has as much time to answer.
        self.enqueue(now, Waiter { since: now, ..waiter });
    }

    /// A waiter that will not be served here, unless by another host: whoever has one takes it, and else it is rejected.
    pub fn take_declined(&mut self) -> Option<(Waiter, Decline)> {
        self.declined.pop_front()
    }

    /// Nobody took it.
    pub fn reject_declined(&mut self, waiter: &Waiter, rejection: Rejection) {
        self.reject(waiter.owner, rejection);
    }

    /// A new session in place of this one, whose host goes away: it takes over the waiters, and connects after a pause.
    pub fn successor(&mut self, names: Names, now: Instant) -> Self {
        let mut successor = Self::new(names, self.backoff.clone(), now);
        successor.link = Link::Broken { retry_at: now + successor.backoff.pause() };
        self.hand_over_waiters(now, &mut successor);
        successor
    }

    /// Lets the waiters of this session, whose host goes away, ask on another one.
    pub fn hand_over_waiters(&mut self, now: Instant, successor: &mut Self) {
        while let Some((&id, _)) = self.waiters.first_key_value() {
            let Some(waiter) = self.take_waiter(id) else { return };
            successor.wake(now);
            successor.enqueue(now, Waiter { patient: true, ..waiter });
        }
    }

    /// Tries again soon, also if nobody has needed it for long: nobody else is left. All workers may think of it at the
    /// same instant, so there is a short pause.
    pub fn hurry(&mut self, now: Instant) {
        let retry_at = match self.link {
            Link::Broken { retry_at } => retry_at.min(now + self.backoff.first_pause()),
            Link::Idle => {
                self.failures = 0;
                self.backoff.reset();
                now + self.backoff.pause()
            }
            Link::Waking | Link::Greeting { .. } | Link::Live { .. } => return,
        };
        self.used = now;
        self.link = Link::Broken { retry_at };
    }

    /// A waiter will not be served here. Its host is told, if it may know it.
    pub fn decline_waiter(&mut self, id: u64, decline: Decline) {
        if let Some(waiter) = self.take_waiter(id) {
            self.decline(waiter, decline);
        }
    }

    /// It will not be served here.
    pub(super) fn decline(&mut self, waiter: Waiter, decline: Decline) {
        self.ids.remove(&waiter.owner);
        self.declined.push_back((waiter, decline));
    }

    pub(super) fn poll_declined(&mut self) -> Option<(RequestRef, Rejection)> {
        self.declined.pop_front().map(|(waiter, decline)| (waiter.owner, decline.rejection()))
    }
}
