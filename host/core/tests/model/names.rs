//! How a host and its clients look apart from their age: times from now, and counters from their latest.

use turnstile_core::{ClaimId, Epoch, HeartbeatSeq, Instant, LockKey, SessionId, View};

use crate::host::Host;
use crate::plan::{TICK, number_of};
use crate::world::World;

/// What is farther away than any duration but [`FAR`](crate::plan::FAR) is only far.
const SHOWN_MAX: i64 = 20 * TICK as i64;

/// What passed longer ago than any duration lasts is only past.
const SHOWN_MIN: i64 = -(4 * TICK as i64);

/// Of a session that its host does not know.
const STALE: u64 = 99;

pub(crate) struct Names<'a> {
    pub(crate) now: u64,
    pub(crate) host: &'a Host,
    pub(crate) world: &'a World,
}

impl Names<'_> {
    pub(crate) fn claims_since(&self, claim: ClaimId) -> u64 {
        self.host.engine.claims_since(claim)
    }

    /// A heartbeat's age in heartbeats.
    pub(crate) fn age(&self, client: usize, seq: u64) -> u64 {
        self.world.clients[client].client.seq.wrapping_sub(seq)
    }

    /// How far a token is from the latest epoch of its key.
    pub(crate) fn age_of_token(&self, key: usize, token: u64) -> (u64, u64) {
        self.world.store.age_of_token(key, token)
    }

    pub(crate) fn epoch_of(&self, key: usize, epoch: u64) -> u64 {
        self.world.store.epoch(key).wrapping_sub(epoch)
    }
}

impl View for Names<'_> {
    fn session(&self, session: SessionId) -> u64 {
        // They are added in the order of their names.
        self.host.connections.iter().position(|of| of.session == session).map_or(STALE, |rank| rank as u64)
    }

    fn seq(&self, session: SessionId, seq: HeartbeatSeq) -> u64 {
        let connection = self.host.connections.iter().find(|of| of.session == session);
        connection.map_or(STALE, |of| self.age(of.client, seq.0))
    }

    fn epoch(&self, key: &LockKey, epoch: Epoch) -> u64 {
        self.epoch_of(number_of(key), epoch.0)
    }

    fn until(&self, at: Instant) -> i64 {
        until(self.now, at.as_micros())
    }
}

/// The time from `now` until `at`, as far as it matters.
pub(crate) fn until(now: u64, at: u64) -> i64 {
    at.cast_signed().saturating_sub(now.cast_signed()).clamp(SHOWN_MIN, SHOWN_MAX)
}

/// A time that is left, as far as it matters.
pub(crate) fn left(duration: u64) -> i64 {
    until(0, duration)
}
