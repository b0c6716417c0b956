//! What this host knows about its own keys: a mirror of the cluster, brought up to date with every answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;

use turnstile_core::{ClaimId, Instant, LockKey};

use super::txn::Place;

/// A key that we own, or are queued for, or may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Owned(Owned),
    Queued(Queued),
    /// A write of ours may have landed, or not.
    Unsure,
}

/// A record of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) revision: i64,
    pub(super) lock_delay_ms: u64,
    pub(super) since_unix_s: u64,
    pub(super) quarantined_until: Instant,
    pub(super) told: Told,
    /// Who was seen first in the queue. Nobody gets in before it, so it is the first until it leaves.
    pub(super) head: Option<Box<Place>>,
    /// The last pass of the sweep in which it was there.
    pub(super) swept: u32,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queued {
    pub(super) claim: ClaimId,
    pub(super) lock_delay_ms: u64,
    /// When the place was written last; the record was not ours then.
    pub(super) revision: i64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Table {
    keys: HashMap<LockKey, Entry>,
    queued: BTreeSet<LockKey>,
    /// And for how many rounds they have been so.
    unsure: BTreeMap<LockKey, u8>,
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
            Entry::Owned(owned) if owned.told == Told::GivenUp => {
                self.given_up.insert((owned.quarantined_until, key.clone()));
            }
            Entry::Queued(_) => drop(self.queued.insert(key.clone())),
            Entry::Unsure => drop(self.unsure.insert(key.clone(), 0)),
            Entry::Owned(_) => {}
        }
        self.keys.insert(key, entry);
    }

    /// Forgets the key.
    pub(super) fn remove(&mut self, key: &LockKey) -> Option<Entry> {
        let entry = self.keys.remove(key)?;
        match &entry {
            Entry::Owned(owned) => drop(self.given_up.remove(&(owned.quarantined_until, key.clone()))),
            Entry::Queued(_) => drop(self.queued.remove(key)),
            Entry::Unsure => drop(self.unsure.remove(key)),
        }
        Some(entry)
    }

    /// Keys of which nobody has wanted to know for a round what became of them.
    pub(super) fn unsure_for_long(&mut self) -> Vec<LockKey> {
        let long = self.unsure.iter_mut().filter_map(|(key, rounds)| {
            *rounds = rounds.saturating_add(1);
            (*rounds > 1).then(|| key.clone())
        });
        long.collect()
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

    /// The sweep saw the record as we know it.
    pub(super) fn swept(&mut self, key: &LockKey, pass: u32) {
        if let Some(Entry::Owned(owned)) = self.keys.get_mut(key) {
            owned.swept = pass;
        }
    }

    /// Up to `count` records that were not there in this pass of the sweep.
    pub(super) fn unswept(&self, pass: u32, count: usize) -> Vec<LockKey> {
        let missed = |entry: &Entry| matches!(entry, Entry::Owned(owned) if owned.swept != pass);
        self.keys.iter().filter(|(_, entry)| missed(entry)).take(count).map(|(key, _)| key.clone()).collect()
    }

    /// Keys that we are queued for.
    pub(super) fn queued(&self) -> impl Iterator<Item = &LockKey> {
        self.queued.iter()
    }

    /// Up to `count` keys that we are queued for, above `after` in key order.
    pub(super) fn queued_after(&self, after: Option<&LockKey>, count: usize) -> Vec<LockKey> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.queued.range::<LockKey, _>((from, Bound::Unbounded)).take(count).cloned().collect()
    }

    /// When the first key that is kept only for its quarantine can go.
    pub(super) fn next_given_up(&self) -> Option<Instant> {
        self.given_up.first().map(|(until, _)| *until)
    }

    /// A key whose quarantine has passed, of those that nobody wants. It is returned once.
    pub(super) fn pop_given_up(&mut self, now: Instant) -> Option<LockKey> {
        self.given_up.first().filter(|(until, _)| *until <= now)?;
        self.given_up.pop_first().map(|(_, key)| key)
    }

    /// Up to `count` keys that are not kept for a quarantine.
    pub(super) fn to_leave(&self, count: usize, now: Instant) -> Vec<LockKey> {
        let keep = |entry: &Entry| matches!(entry, Entry::Owned(owned) if owned.quarantined_until > now);
        self.keys.iter().filter(|(_, entry)| !keep(entry)).take(count).map(|(key, _)| key.clone()).collect()
    }
}
