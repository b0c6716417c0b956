//! Every bound and duration that the engine keeps to.

use core::time::Duration;

/// Bounds and durations of an [`Engine`](crate::Engine). The driver has validated them.
#[derive(Clone, Debug)]
pub struct Config {
    /// A session ends this long after its last heartbeat was processed.
    pub session_ttl: Duration,
    /// Sessions at once (I7).
    pub sessions_max: usize,
    /// Waiters at once, of all sessions and keys (I7).
    pub waiters_max: usize,
    /// Waiters of one session at once (I7).
    pub waiters_per_session_max: usize,
    /// Holds of one session at once (I7); a session that resumes must be able to list them.
    pub holds_per_session_max: usize,
    /// Requests at once that have joined one hold, or wait to (I7).
    pub joins_per_hold_max: usize,
    /// Waiters of one key at once, besides those that join its hold: a full queue must not turn those away, for which the
    /// hold may be waiting. They are bounded by session, and as a whole (I7).
    pub waiters_per_key_max: usize,
    /// Keys tracked at once, whatever their state (I7).
    pub keys_max: usize,
    /// The longest wait that is granted; longer ones are cut to it.
    pub wait_max: Duration,
    /// The longest hold; it also stands for "none given".
    pub hold_max: Duration,
    /// The longest lock delay; longer ones are cut to it.
    pub lock_delay_max: Duration,
    /// How long a request waits for the *store* at least, however short its own wait (0 is a try), when nothing else
    /// stands between it and the key: free here, not owned yet, nobody before it. Once the store has answered that
    /// somebody else has the key, its own wait counts. A try waits for this long even then: the other host may own the key
    /// with nobody holding it, and gives it up when asked.
    pub claim_patience: Duration,
    /// What local waiters may still get when another host wants the key.
    pub handoff_budget: HandoffBudget,
    /// Ownership of a key that nobody uses is given up after this long.
    pub idle_ownership: Duration,
}

/// Handoffs that a key's owner may still make once another host wants the key (I4): whichever ends first.
#[derive(Clone, Copy, Debug)]
pub struct HandoffBudget {
    /// Further grants.
    pub grants: u32,
    /// Time during which further grants may start.
    pub time: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            session_ttl: Duration::from_secs(4),
            sessions_max: 10_000,
            waiters_max: 1_000_000,
            waiters_per_session_max: 10_000,
            holds_per_session_max: 32_768,
            joins_per_hold_max: 256,
            waiters_per_key_max: 10_000,
            keys_max: 1_000_000,
            wait_max: Duration::from_secs(600),
            hold_max: Duration::from_secs(3_600),
            lock_delay_max: Duration::from_secs(3_600),
            claim_patience: Duration::from_secs(1),
            handoff_budget: HandoffBudget { grants: 64, time: Duration::from_millis(100) },
            idle_ownership: Duration::from_secs(60),
        }
    }
}
