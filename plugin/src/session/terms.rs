//! What requests ask a session for, and what it tells them.

use core::time::Duration;

use turnstile_protocol::v1;

use crate::reentry::{HolderSecret, Kin, Reentry};

/// What a request asks for.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// The locks, all of them at once: at least one, each key once.
    pub keys: Vec<v1::KeyRequest>,
    /// How long to wait; zero is "try".
    pub wait: Duration,
    /// Not to wait at all if so many wait for one of the keys already; zero for the host's limit alone.
    pub queue_max: u32,
    /// Not to wait at all if the turn is not to be expected within the wait.
    pub fail_fast: bool,
    /// The longest hold.
    pub hold: Duration,
    /// Quarantine after an unclean end.
    pub lock_delay: Duration,
    /// Whether the hold is shared.
    pub reentry: Reentry,
    /// For people who look at a stuck lock.
    pub who: v1::Who,
}

impl From<Ask> for v1::Acquire {
    fn from(ask: Ask) -> Self {
        Self {
            keys: ask.keys,
            queue_max: ask.queue_max,
            fail_fast: ask.fail_fast,
            hold_ms: super::millis(ask.hold),
            lock_delay_ms: super::millis(ask.lock_delay),
            reentrant: ask.reentry == Reentry::Open,
            reentry_secret: match &ask.reentry {
                Reentry::Closed | Reentry::Open => Vec::new(),
                Reentry::Join(secret) => secret.as_bytes().to_vec(),
            },
            who: Some(ask.who),
            ..Self::default()
        }
    }
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds its locks from now on. Ask [`Session::believes`](super::Session::believes) again right before acting on
    /// it.
    Granted(Granted),
    /// It will not get its locks.
    Rejected(Rejection),
    /// It must stop believing in its locks; a release must follow.
    Lost(Loss),
}

/// What the host gave with the locks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The fencing tokens.
    pub tokens: Tokens,
    /// Whose hold it is.
    pub kin: Kin,
}

impl Granted {
    /// What answers `acquire` in full; `None` if the host left something out.
    pub(super) fn parse(acquire: &v1::Acquire, grant: &v1::Grant) -> Option<Self> {
        let tokens = Tokens::parse(&grant.keys).filter(|_| grant.keys.len() == acquire.keys.len())?;
        let secret = || HolderSecret::from_wire(&grant.holder_secret);
        let kin = match (acquire.reentrant, acquire.reentry_secret.as_slice()) {
            (false, []) => Kin::None,
            (true, _) => Kin::Founder(secret()?),
            (false, _) => Kin::Member(secret()?),
        };
        Some(Self { tokens, kin })
    }
}

/// The fencing tokens of a grant: one for each key, in order. The usual case, which is one, allocates nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    first: u64,
    more: Vec<u64>,
}

impl Tokens {
    /// As the host sends them; `None` if there are none.
    pub(crate) fn parse(keys: &[v1::KeyGrant]) -> Option<Self> {
        let (first, more) = keys.split_first()?;
        Some(Self { first: first.token, more: more.iter().map(|key| key.token).collect() })
    }

    /// Joined by commas: as the upstream sees them.
    pub fn text(&self) -> String {
        let mut text = self.first.to_string();
        for token in &self.more {
            text.push(',');
            text.push_str(&token.to_string());
        }
        text
    }
}

/// Why a request does not get its locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// A try found a lock taken.
    Conflict,
    /// The wait is over.
    WaitOver {
        /// When to try again, if the host said so.
        retry_after: Option<Duration>,
    },
    /// The wait would be over before the turn comes.
    Hopeless {
        /// When to try again, if the host said so.
        retry_after: Option<Duration>,
    },
    /// A queue or table is full, here or at the host.
    Busy {
        /// When to try again, if the host said so.
        retry_after: Option<Duration>,
    },
    /// The hold to join is not there (any more), or never was.
    NoSuchHold,
    /// The hold to join has a key in a weaker mode.
    Upgrade,
    /// No host answers, or its store does not.
    HostUnavailable,
    /// The host calls the request malformed, or answers what was not asked: a fault of ours or of the host's.
    Invalid,
}

/// Why a lock was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The promise ended, and nobody renewed it.
    PromiseOver,
    /// The longest hold is over.
    HoldLimit,
    /// The host said so.
    ByHost,
}
