//! Releases and cancels that the host may not have processed yet: they are told again when a session resumes.

use std::collections::VecDeque;

use turnstile_protocol::v1;

/// What ends a request at the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Farewell {
    /// The end of a hold.
    Release(v1::Ending),
    /// A waiter is no longer wanted.
    Cancel,
}

impl Farewell {
    /// As an item of the stream.
    pub(super) fn item(self, id: u64) -> v1::ClientItem {
        match self {
            Self::Release(ending) => v1::Release { id, ending: ending.into() }.into(),
            Self::Cancel => v1::Cancel { id }.into(),
        }
    }

    /// As a part of a Resume, where a cancel counts as a release of something unsent.
    fn release(self, id: u64) -> v1::Release {
        let ending = match self {
            Self::Release(ending) => ending,
            Self::Cancel => v1::Ending::Unsent,
        };
        v1::Release { id, ending: ending.into() }
    }
}

#[derive(Debug)]
struct Entry {
    id: u64,
    farewell: Farewell,
    /// The last heartbeat sent before it; an answer to any later one covers it.
    after_seq: u64,
    /// Whether it went out on the current stream (in its Hello, or on its own).
    told: bool,
}

/// The farewells of one session that no answer has covered yet.
#[derive(Debug, Default)]
pub(super) struct Farewells {
    entries: VecDeque<Entry>,
}

impl Farewells {
    /// How many are not covered.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the request has been ended by us.
    pub(super) fn contains(&self, id: u64) -> bool {
        self.entries.iter().rev().any(|entry| entry.id == id)
    }

    /// Remembers one.
    pub(super) fn push(&mut self, id: u64, farewell: Farewell, after_seq: u64, told: bool) {
        self.entries.push_back(Entry { id, farewell, after_seq, told });
    }

    /// Forgets those that an answer to heartbeat `seq` covers.
    pub(super) fn cover(&mut self, seq: u64) {
        while self.entries.front().is_some_and(|entry| entry.told && entry.after_seq < seq) {
            self.entries.pop_front();
        }
    }

    /// All of them, for the Hello that has the number `hello_seq`; they count as sent just before it.
    pub(super) fn for_resume(&mut self, hello_seq: u64) -> Vec<v1::Release> {
        let mut releases = Vec::with_capacity(self.entries.len());
        for entry in &mut self.entries {
            entry.told = true;
            entry.after_seq = hello_seq.saturating_sub(1);
            releases.push(entry.farewell.release(entry.id));
        }
        releases
    }

    /// Those that came up after the Hello; they are being sent now, after heartbeat `last_seq`.
    pub(super) fn untold(&mut self, last_seq: u64) -> Vec<v1::ClientItem> {
        let mut items = Vec::new();
        for entry in self.entries.iter_mut().filter(|entry| !entry.told) {
            entry.told = true;
            entry.after_seq = last_seq;
            items.push(entry.farewell.item(entry.id));
        }
        items
    }

    /// For a Hello that only ends what is left of the session.
    pub(super) fn releases(&self) -> Vec<v1::Release> {
        self.entries.iter().map(|entry| entry.farewell.release(entry.id)).collect()
    }

    /// The session is gone, and what it had to be told with it.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}
