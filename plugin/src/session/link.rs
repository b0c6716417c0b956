//! The stream of a session: opened, greeted, kept alive, given up, opened again.

use core::time::Duration;

use prost::Message;
use turnstile_protocol::{VERSION, v1};

use super::farewells::{Farewell, Farewells};
use super::handover::Decline;
use super::{GREETING_PATIENCE, GREETING_SUSPICION, IDLE_MAX, Loss, Session, StreamToken, TICK, Waiter};
use crate::clock::Instant;

/// A Hello carries no more waiters than fit; the others ask anew.
const HELLO_WAITERS_BYTES: usize = turnstile_protocol::MESSAGE_MAX_BYTES / 2;
/// A waiter in a Hello is preceded by its tag and its length.
const ITEM_HEAD_BYTES: usize = 4;

/// What there is of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// None, and nobody wants one.
    Idle,
    /// None, and one is wanted at once.
    Waking,
    /// None; the next is to be opened at this instant.
    Broken { retry_at: Instant },
    /// Hello was sent, and Welcome is awaited. `overdue` and `suspected`: since the tick that first found silence. One
    /// more is to pass: if we were frozen ourselves, the answers are here but not yet read.
    Greeting { stream: StreamToken, since: Instant, resuming: bool, overdue: Option<Instant> },
    /// Up.
    Live { stream: StreamToken, next_heartbeat: Instant, suspected: Option<Instant> },
}

impl Link {
    pub(super) fn stream(&self) -> Option<StreamToken> {
        match self {
            Self::Idle | Self::Waking | Self::Broken { .. } => None,
            Self::Greeting { stream, .. } | Self::Live { stream, .. } => Some(*stream),
        }
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self, Self::Live { .. })
    }
}

/// What the host calls the session.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) incarnation: String,
    pub(super) session_id: u64,
    pub(super) ttl: Duration,
    pub(super) heartbeat: Duration,
    /// The send of the newest heartbeat that the host has processed: the TTL counts from there at the earliest.
    pub(super) heard: Instant,
}

/// What is left of a session that we gave up because it must be over by now. If its host was frozen, it may come to life
/// again, with our waiters in its queues: then they are withdrawn, since nobody would ever use what they are granted.
#[derive(Debug)]
pub(super) struct Abandoned {
    incarnation: String,
    session_id: u64,
    farewells: Farewells,
}

impl Session {
    /// Whether a stream is to be opened now.
    pub fn wants_stream(&self, now: Instant) -> bool {
        match self.link {
            Link::Waking => true,
            Link::Broken { retry_at } => retry_at <= now,
            Link::Idle | Link::Greeting { .. } | Link::Live { .. } => false,
        }
    }

    /// Whether a stream is wanted before the next tick.
    pub fn is_waking(&self) -> bool {
        self.link == Link::Waking
    }

    /// A stream was opened, as wanted: says Hello on it.
    pub fn stream_opened(&mut self, now: Instant, stream: StreamToken) {
        let heartbeat_seq = self.pulse.restart(now);
        self.outbox.clear();
        let resume = self.resume(now, heartbeat_seq);
        self.generation = if resume.is_some() { self.generation + 1 } else { 1 };
        self.link = Link::Greeting { stream, since: now, resuming: resume.is_some(), overdue: None };
        let hello = v1::Hello {
            protocol_version: VERSION,
            node: self.names.node.clone(),
            worker: self.names.worker.clone(),
            generation: self.generation,
            heartbeat_seq,
            resume,
        };
        self.outbox.push(hello.into());
    }

    /// The stream that was wanted could not be opened.
    pub fn stream_refused(&mut self, now: Instant) {
        self.link_failed(now);
    }

    /// A stream has ended.
    pub fn stream_closed(&mut self, now: Instant, stream: StreamToken) {
        if self.link.stream() == Some(stream) {
            self.link_failed(now);
        }
    }

    /// New requests are answered at once: no host was reached, and no session can be resumed.
    pub fn is_host_down(&self) -> bool {
        let is_trying = !matches!(self.link, Link::Idle | Link::Live { .. });
        is_trying && self.failures > 0 && self.identity.is_none()
    }

    pub(super) fn tick_link(&mut self, now: Instant) {
        let expired = self.identity.as_ref().is_some_and(|identity| identity.heard + identity.ttl <= now);
        if expired && !self.link.is_live() {
            self.abandon_session(now);
            // A Hello that resumes it may be under way, and must not be answered with what we have just forgotten.
            if matches!(self.link, Link::Greeting { .. }) {
                self.give_up_stream(now);
            }
        }
        match self.link {
            Link::Idle => {}
            Link::Waking | Link::Broken { .. } | Link::Greeting { .. } if self.is_idle(now) => self.close_idle(),
            Link::Waking | Link::Broken { .. } => {}
            Link::Greeting { .. } => self.tick_greeting(now),
            Link::Live { .. } => self.tick_live(now),
        }
    }

    fn tick_greeting(&mut self, now: Instant) {
        let Link::Greeting { since, overdue, .. } = &mut self.link else { return };
        let silent = now.saturating_since(*since);
        if silent < GREETING_SUSPICION {
            return;
        }
        let is_sure = now >= *overdue.get_or_insert(now) + TICK;
        if is_sure && silent >= GREETING_PATIENCE {
            self.give_up_stream(now);
        }
    }

    fn tick_live(&mut self, now: Instant) {
        let Some(interval) = self.identity.as_ref().map(|identity| identity.heartbeat) else { return };
        // The host is frozen, or we talk to nobody. Holds still have time to be resumed on another stream.
        let silent = self.pulse.silence(now) >= interval * 3 / 2;
        let idle = self.is_idle(now);
        let Link::Live { next_heartbeat, suspected, .. } = &mut self.link else { return };
        if !silent {
            *suspected = None;
        } else if now >= *suspected.get_or_insert(now) + TICK {
            return self.give_up_stream(now);
        }
        if idle {
            self.close_idle();
        } else if *next_heartbeat <= now {
            self.send_heartbeat(now);
        }
    }

    pub(super) fn send_heartbeat(&mut self, now: Instant) {
        let Some(interval) = self.identity.as_ref().map(|identity| identity.heartbeat) else { return };
        if let Link::Live { next_heartbeat, .. } = &mut self.link {
            *next_heartbeat = now + interval;
            let seq = self.pulse.beat(now);
            self.outbox.push(v1::Heartbeat { seq }.into());
        }
    }

    /// The host does not know the session any more, or must have forgotten it: its holds are lost, and its waiters ask
    /// anew once there is a new session.
    pub(super) fn forget_session(&mut self, now: Instant) {
        self.identity = None;
        self.farewells.clear();
        for hold in core::mem::take(&mut self.holds).into_values() {
            match hold.unused {
                Some(waiter) => self.ask_again(now, *waiter),
                None => {
                    self.ids.remove(&hold.owner);
                    if !hold.lost {
                        self.losses.push_back((hold.owner, Loss::ByHost));
                    }
                }
            }
        }
        for waiter in self.waiters.values_mut() {
            waiter.sent = false;
        }
    }

    /// The host must have forgotten the session. Should it not have, it is told with the next Hello what is not wanted.
    fn abandon_session(&mut self, now: Instant) {
        let Some(identity) = &self.identity else { return };
        let mut farewells = core::mem::take(&mut self.farewells);
        for (&id, _) in self.waiters.iter().filter(|(_, waiter)| waiter.sent) {
            farewells.push(id, Farewell::Cancel, 0, false);
        }
        for (&id, _) in self.holds.iter().filter(|(_, hold)| hold.unused.is_some()) {
            farewells.push(id, Farewell::Release(v1::Ending::Unsent), 0, false);
        }
        let (incarnation, session_id) = (identity.incarnation.clone(), identity.session_id);
        self.abandoned = Some(Abandoned { incarnation, session_id, farewells });
        self.forget_session(now);
        // A host takes no number twice.
        for waiter in core::mem::take(&mut self.waiters).into_values() {
            self.enqueue(now, waiter);
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.is_unused() && now.saturating_since(self.used) >= IDLE_MAX
    }

    fn close_idle(&mut self) {
        self.closing = self.link.stream();
        self.link = Link::Idle;
        self.identity = None;
        self.abandoned = None;
        self.farewells.clear();
        self.outbox.clear();
    }

    fn give_up_stream(&mut self, now: Instant) {
        self.closing = self.link.stream();
        self.link_failed(now);
    }

    fn link_failed(&mut self, now: Instant) {
        if !self.link.is_live() {
            self.failures = self.failures.saturating_add(1);
        }
        self.outbox.clear();
        self.link = Link::Broken { retry_at: now + self.backoff.pause() };
        if self.is_host_down() {
            self.decline_impatient();
        }
    }

    fn decline_impatient(&mut self) {
        let impatient: Vec<u64> =
            self.waiters.iter().filter(|(_, waiter)| !waiter.patient).map(|(&id, _)| id).collect();
        for id in impatient {
            if let Some(waiter) = self.waiters.remove(&id) {
                self.decline(waiter, Decline::Unreachable);
            }
        }
    }

    fn resume(&mut self, now: Instant, hello_seq: u64) -> Option<v1::Resume> {
        if let Some(Abandoned { incarnation, session_id, farewells }) = &self.abandoned {
            let (incarnation, releases) = (incarnation.clone(), farewells.releases());
            return Some(v1::Resume { incarnation, session_id: *session_id, releases, ..v1::Resume::default() });
        }
        let (incarnation, session_id) =
            self.identity.as_ref().map(|identity| (identity.incarnation.clone(), identity.session_id))?;
        let mut waiters = Vec::new();
        let mut bytes = 0;
        let mut left_out = Vec::new();
        for (&id, waiter) in self.waiters.iter_mut().filter(|(_, waiter)| waiter.sent) {
            let acquire = v1::Acquire { wait_ms: waiter.wait_left(now), who: None, ..waiter.acquire.clone() };
            bytes += acquire.encoded_len() + ITEM_HEAD_BYTES;
            if bytes > HELLO_WAITERS_BYTES {
                left_out.push(id);
            } else {
                waiters.push(acquire);
            }
        }
        // The host forgets those that are not listed, and takes no number twice.
        let left_out: Vec<Waiter> = left_out.into_iter().filter_map(|id| self.waiters.remove(&id)).collect();
        for waiter in left_out {
            // It may have been granted meanwhile.
            self.say_farewell(waiter.acquire.id, Farewell::Cancel);
            self.enqueue(now, waiter);
        }
        let holds = self.holds.keys().copied().collect();
        let releases = self.farewells.for_resume(hello_seq);
        Some(v1::Resume { incarnation, session_id, waiters, holds, releases })
    }
}
