//! What is counted. Counts gather here and reach the proxy's statistics at the next tick: a call per request costs.

/// One thing that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Stat {
    /// Requests that a rule guards.
    Guarded,
    /// Requests that got their lock and went on.
    Granted,
    /// Requests answered because a try found the lock taken.
    Conflict,
    /// Requests answered because their wait was over.
    Timeout,
    /// Requests answered because their wait would not have been long enough.
    Hopeless,
    /// Requests answered because a queue was full.
    Busy,
    /// Requests answered because they could not join the hold that they named.
    NotJoined,
    /// Requests answered because no host was there.
    HostUnavailable,
    /// Requests that went on without a lock, because no host was there and their rule allows it.
    Bypassed,
    /// Requests answered because their lock could not be told.
    Refused,
    /// Requests whose client went away while they waited.
    Cancelled,
    /// Requests that lost their lock while the upstream worked.
    Lost,
    /// Holds that ended cleanly.
    ReleasedClean,
    /// Holds that ended while the upstream might still be working.
    ReleasedUnclean,
    /// Holds that ended without the upstream having seen the request.
    ReleasedUnsent,
    /// Requests that were asked of another host than the one they prefer, or moved on to another.
    Failovers,
    /// Streams to a host that were opened.
    StreamsOpened,
    /// Faults of the filter itself or of the host, for instance a reply that could not be sent.
    Errors,
}

impl Stat {
    /// All of them, with their names.
    pub const ALL: [(Self, &'static str); 18] = [
        (Self::Guarded, "turnstile.guarded"),
        (Self::Granted, "turnstile.granted"),
        (Self::Conflict, "turnstile.conflict"),
        (Self::Timeout, "turnstile.timeout"),
        (Self::Hopeless, "turnstile.hopeless"),
        (Self::Busy, "turnstile.busy"),
        (Self::NotJoined, "turnstile.not_joined"),
        (Self::HostUnavailable, "turnstile.host_unavailable"),
        (Self::Bypassed, "turnstile.bypassed"),
        (Self::Refused, "turnstile.refused"),
        (Self::Cancelled, "turnstile.cancelled"),
        (Self::Lost, "turnstile.lost"),
        (Self::ReleasedClean, "turnstile.released_clean"),
        (Self::ReleasedUnclean, "turnstile.released_unclean"),
        (Self::ReleasedUnsent, "turnstile.released_unsent"),
        (Self::Failovers, "turnstile.failovers"),
        (Self::StreamsOpened, "turnstile.streams_opened"),
        (Self::Errors, "turnstile.errors"),
    ];
}

/// Counts that the proxy has not been told yet.
#[derive(Clone, Debug, Default)]
pub struct Stats([u32; Stat::ALL.len()]);

impl Stats {
    /// Counts one.
    pub fn count(&mut self, stat: Stat) {
        self.add(stat, 1);
    }

    /// Counts so many.
    pub fn add(&mut self, stat: Stat, more: u32) {
        if let Some(count) = self.0.get_mut(stat as usize) {
            *count = count.saturating_add(more);
        }
    }

    /// Takes the counts that are not zero.
    pub fn take(&mut self) -> Vec<(Stat, u32)> {
        if self.0.iter().all(|&count| count == 0) {
            return Vec::new();
        }
        let counts = core::mem::take(&mut self.0);
        Stat::ALL.iter().zip(counts).filter(|(_, count)| *count > 0).map(|(&(stat, _), count)| (stat, count)).collect()
    }
}
