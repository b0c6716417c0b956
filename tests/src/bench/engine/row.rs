//! The loads that go through a host's gRPC port.

use crate::bench::program::Rows;

/// A way of asking for locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// Every session has keys of its own, all owned by the host before.
    DistinctKeys,
    /// All sessions want the same few keys.
    HotKeys,
    /// All sessions want one key: each handoff waits for a round trip to the holder.
    HotKey,
}

/// Sessions, each on a connection of its own.
pub const SESSIONS: usize = 8;

/// Keys of [`Row::DistinctKeys`].
pub const DISTINCT_KEYS: usize = 10_000;

/// Keys of [`Row::HotKeys`].
pub const HOT_KEYS: usize = 64;

impl Row {
    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::DistinctKeys => "10,000 keys",
            Self::HotKeys => "64 keys, 15 waiters each",
            Self::HotKey => "one key, 127 waiters",
        }
    }

    /// How many requests a session has under way.
    pub fn in_flight(self) -> usize {
        match self {
            Self::DistinctKeys => 128,
            // Each session asks twice for each key.
            Self::HotKeys => 2 * HOT_KEYS,
            Self::HotKey => 16,
        }
    }

    /// The keys that session number `session` asks for, over and over.
    pub fn keys(self, session: usize) -> Vec<String> {
        let own = DISTINCT_KEYS / SESSIONS;
        let numbers = match self {
            Self::DistinctKeys => session * own..(session + 1) * own,
            Self::HotKeys => 0..HOT_KEYS,
            Self::HotKey => 0..1,
        };
        numbers.map(|number| format!("default/acct:{number:07}")).collect()
    }
}

impl Rows for Row {
    const ALL: &'static [Self] = &[Self::DistinctKeys, Self::HotKeys, Self::HotKey];

    fn name(self) -> &'static str {
        match self {
            Self::DistinctKeys => "keys",
            Self::HotKeys => "hot-keys",
            Self::HotKey => "hot-key",
        }
    }
}
