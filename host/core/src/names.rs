//! The names of things: keys, sessions, requests, tokens. Newtypes, so that none is taken for another.

use core::fmt;
use core::num::NonZeroU32;
use std::sync::Arc;

/// The name of a guarded resource, namespace included: `default/account:42`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockKey(Arc<str>);

/// Why a text is no lock key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidLockKey {
    /// It has no bytes.
    Empty,
    /// It is longer than [`LockKey::MAX_BYTES`].
    TooLong,
    /// It has a byte outside visible ASCII (0x21 to 0x7e).
    NotVisibleAscii,
}

impl LockKey {
    /// The longest lock key, in bytes.
    pub const MAX_BYTES: usize = 512;

    /// Takes `text` as a lock key.
    pub fn parse(text: &str) -> Result<Self, InvalidLockKey> {
        if text.is_empty() {
            Err(InvalidLockKey::Empty)
        } else if text.len() > Self::MAX_BYTES {
            Err(InvalidLockKey::TooLong)
        } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Err(InvalidLockKey::NotVisibleAscii)
        } else {
            Ok(Self(text.into()))
        }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for LockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for LockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for InvalidLockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a lock key must not be empty"),
            Self::TooLong => write!(f, "a lock key has at most {} bytes", LockKey::MAX_BYTES),
            Self::NotVisibleAscii => f.write_str("a lock key is visible ASCII (0x21 to 0x7e)"),
        }
    }
}

impl core::error::Error for InvalidLockKey {}

/// How a key is held. Holds of different modes exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// One holder at a time.
    Exclusive,
    /// Any number of holders.
    Shared,
    /// At most this many holders at once; among holders with different limits the smallest counts.
    Limit(NonZeroU32),
}

/// What whoever joins a hold must know: 128 random bits, that the driver makes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HolderSecret(pub [u8; 16]);

impl fmt::Debug for HolderSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HolderSecret(..)")
    }
}

/// One session of this incarnation; random, so that nobody resumes what is not theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// A request of one session; strictly increasing within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A waiter or holder: a request of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HolderId {
    /// Whose request it is.
    pub session: SessionId,
    /// Which of that session's requests.
    pub request: RequestId,
}

/// The number of a heartbeat (or Hello) of a session; strictly increasing over the session's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeartbeatSeq(pub u64);

/// Numbers the engine's claims, so that a late answer of the store to an older one is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimId(pub u64);

/// The number under which the store gave out an ownership of a key; strictly increasing per key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// A fencing token: strictly increasing per key, below 2^63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u64);

impl Token {
    /// How many low bits count the grants of one epoch.
    pub const SEQUENCE_BITS: u32 = 20;

    /// The largest sequence of an epoch.
    pub const SEQUENCE_MAX: u32 = (1 << Self::SEQUENCE_BITS) - 1;

    /// The largest epoch of which a token can be made.
    pub const EPOCH_MAX: Epoch = Epoch((1 << (63 - Self::SEQUENCE_BITS)) - 1);

    /// The token of the grant number `sequence` of `epoch`; `None` if either is past its range.
    pub const fn new(epoch: Epoch, sequence: u32) -> Option<Self> {
        if epoch.0 > Self::EPOCH_MAX.0 || sequence > Self::SEQUENCE_MAX {
            None
        } else {
            Some(Self((epoch.0 << Self::SEQUENCE_BITS) | sequence as u64))
        }
    }

    /// The token as the number that goes over the wire.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}
