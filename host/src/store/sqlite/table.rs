//! What this process knows about its own keys: a mirror of the file, brought up to date after every commit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::time::Duration;

use turnstile_core::{ClaimId, Instant, LockKey};

/// A key that we own or are queued for.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    Owned(Owned),
    Queued(Queued),
}

/// A record of ours.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    pub(super) epoch: u64,
    pub(super) lock_delay: Duration,
    pub(super) quarantined_until: Instant,
    /// The claim that was answered with it last.
    pub(super) claim: Option<ClaimId>,
    pub(super) told: Told,
}

/// What the driver believes about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It has it.
    Gained,
    /// It has it, and knows that another host wants it.
    Contended,
    /// It does not want it (any more); we keep it only until the quarantine has passed.
    GivenUp,
}

/// A place in the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queued {
    pub(super) claim: ClaimId,
    pub(super) lock_delay: Duration,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Table {
    keys: HashMap<LockKey, Entry>,
    by_epoch: BTreeMap<u64, LockKey>,
    queued: BTreeSet<LockKey>,
    given_up: BTreeSet<(Instant, LockKey)>,
}

impl Table {
    pub(super) fn get(&self, key: &LockKey) -> Option<&Entry> {
        self.keys.get(key)
    }

    /// Replaces what is known about the key.
    pub(super) fn set(&mut self, key: LockKey, entry: Entry) {
        self.remove(&key);
        match &entry {
            Entry::Owned(owned) => {
                self.by_epoch.insert(owned.epoch, key.clone());
                if owned.told == Told::GivenUp {
                    self.given_up.insert((owned.quarantined_until, key.clone()));
                }
            }
            Entry::Queued(_) => drop(self.queued.insert(key.clone())),
        }
        self.keys.insert(key, entry);
    }

    /// Forgets the key.
    pub(super) fn remove(&mut self, key: &LockKey) -> Option<Entry> {
        let entry = self.keys.remove(key)?;
        match &entry {
            Entry::Owned(owned) => {
                self.by_epoch.remove(&owned.epoch);
                self.given_up.remove(&(owned.quarantined_until, key.clone()));
            }
            Entry::Queued(_) => drop(self.queued.remove(key)),
        }
        Some(entry)
    }

    /// Marks the key contended; true if the driver is to be told.
    pub(super) fn contend(&mut self, key: &LockKey) -> bool {
        match self.keys.get_mut(key) {
            Some(Entry::Owned(owned)) if owned.told == Told::Gained => {
                owned.told = Told::Contended;
                true
            }
            _ => false,
        }
    }

    /// Records that we believe ours, with epochs above `after` and up to `last`.
    pub(super) fn owned_between(&self, after: u64, last: u64) -> impl Iterator<Item = (u64, &LockKey)> {
        let range = (Bound::Excluded(after), Bound::Included(last.max(after.saturating_add(1))));
        self.by_epoch.range(range).filter(move |(epoch, _)| **epoch <= last).map(|(epoch, key)| (*epoch, key))
    }

    /// Up to `count` keys that we are queued for, above `after` in key order.
    pub(super) fn queued_after(&self, after: Option<&LockKey>, count: usize) -> Vec<LockKey> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.queued.range::<LockKey, _>((from, Bound::Unbounded)).take(count).cloned().collect()
    }

    /// The first key that we keep only for its quarantine, and when that has passed.
    pub(super) fn first_given_up(&self) -> Option<&(Instant, LockKey)> {
        self.given_up.first()
    }

    /// A key whose quarantine has passed, of those that nobody wants. It is returned once.
    pub(super) fn pop_given_up(&mut self, now: Instant) -> Option<LockKey> {
        self.given_up.first().filter(|(until, _)| *until <= now)?;
        self.given_up.pop_first().map(|(_, key)| key)
    }

    pub(super) fn is_queued_anywhere(&self) -> bool {
        !self.queued.is_empty()
    }

    pub(super) fn owns_anything(&self) -> bool {
        !self.by_epoch.is_empty()
    }
}
