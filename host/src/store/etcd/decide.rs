//! What to do next about one key: a pure function of what is wanted, what we know and what was read.

use std::time::Duration;

use turnstile_core::{ClaimId, Instant};

use super::hosts::Hosts;
use super::layout::{PlaceValue, RecordValue};
use super::table::{Entry, Owned, Told};
use super::txn::{Record, Seen, Turn, Write};

/// What is wanted of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// To own it.
    Claim { claim: ClaimId, lock_delay_ms: u64, new_epoch: bool },
    /// To have nothing of it.
    Yield,
    /// To know whether our turn has come, or whether another wants it.
    Look,
}

/// The way on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Write(Write),
    Read,
    /// The record is ours under an epoch under which nothing was granted.
    Gained {
        record: Record,
        quarantined_until: Instant,
    },
    /// We are in the queue, and our turn has not come.
    Queued,
    /// It is ours as we knew, now under this revision; and others wait, or not.
    Kept {
        revision: i64,
        rivals: bool,
    },
    /// What we took for ours is not.
    Lost,
    /// It is ours and nobody wants it, but a dead owner's quarantine must be kept.
    KeptForQuarantine {
        record: Record,
        quarantined_until: Instant,
    },
    /// There is nothing of ours left.
    Nothing,
    /// Our turn has come, but we do not believe in our own lease at the moment.
    Unbelieving,
}

/// Who decides, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances<'a> {
    pub(super) me: &'a str,
    pub(super) ttl: Duration,
    pub(super) hosts: &'a Hosts,
    pub(super) now: Instant,
    /// Our own lease is good until then.
    pub(super) leased_until: Instant,
    pub(super) unix_s: u64,
}

impl Circumstances<'_> {
    pub(super) fn step(&self, want: Want, entry: Option<&Entry>, seen: Option<&Seen>) -> Step {
        match want {
            Want::Claim { lock_delay_ms, new_epoch, .. } => self.claim(lock_delay_ms, new_epoch, entry, seen),
            Want::Yield => self.give_up(entry, seen),
            Want::Look => self.look(entry, seen),
        }
    }

    fn claim(&self, lock_delay_ms: u64, new_epoch: bool, entry: Option<&Entry>, seen: Option<&Seen>) -> Step {
        match (entry, seen) {
            (Some(Entry::Owned(owned)), None) => self.raise(owned.revision, &owned.value, lock_delay_ms, owned),
            (Some(Entry::Owned(owned)), Some(seen)) => match self.ours(seen) {
                // An earlier raise landed although we were not told.
                Some(record) => self.raise(record.revision, &record.value, lock_delay_ms, owned),
                None => Step::Lost,
            },
            (None, None) => Step::Write(Write::Create { record: self.record(lock_delay_ms, 0) }),
            (Some(Entry::Queued(_) | Entry::Unsure), None) => Step::Read,
            (Some(Entry::Queued(_)), Some(seen)) => match self.ours(seen) {
                Some(record) if record.value.lock_delay_ms >= lock_delay_ms && !new_epoch => self.handed(record),
                Some(record) => self.find(record, lock_delay_ms),
                None => self.queue_up(lock_delay_ms, seen, true),
            },
            (None | Some(Entry::Unsure), Some(seen)) => match self.ours(seen) {
                Some(record) => self.find(record, lock_delay_ms),
                None => self.queue_up(lock_delay_ms, seen, true),
            },
        }
    }

    /// The record goes on under a new epoch.
    fn raise(&self, revision: i64, value: &RecordValue, lock_delay_ms: u64, owned: &Owned) -> Step {
        let inherited_ms = millis_up(owned.quarantined_until.saturating_since(self.now));
        let record = RecordValue {
            lock_delay_ms: value.lock_delay_ms.max(lock_delay_ms),
            inherited_ms,
            ttl_ms: millis_up(self.ttl),
            ..value.clone()
        };
        Step::Write(Write::Raise { revision, record })
    }

    /// A record of ours that we did not know: nobody knows what was granted under its epoch.
    fn find(&self, record: &Record, lock_delay_ms: u64) -> Step {
        let lock_delay_ms = record.value.lock_delay_ms.max(lock_delay_ms);
        let record_value = RecordValue { lock_delay_ms, ttl_ms: millis_up(self.ttl), ..record.value.clone() };
        Step::Write(Write::Raise { revision: record.revision, record: record_value })
    }

    /// A record that was handed to us, or that we took over without being told.
    fn handed(&self, record: &Record) -> Step {
        Step::Gained { record: record.clone(), quarantined_until: self.quarantine_of(&record.value) }
    }

    /// Until when the quarantine of a record lasts whose taking over we missed.
    pub(super) fn quarantine_of(&self, value: &RecordValue) -> Instant {
        match value.inherited_ms {
            0 => Instant::default(),
            inherited_ms => self.now + Duration::from_millis(inherited_ms),
        }
    }

    /// The record is not ours. `put` the place again even if we have one (it may remember more).
    fn queue_up(&self, lock_delay_ms: u64, seen: &Seen, put: bool) -> Step {
        let first = seen.first().is_none_or(|first| first == self.me);
        let (revision, wake) = match &seen.record {
            None if first => return Step::Write(Write::Create { record: self.record(lock_delay_ms, 0) }),
            None => (0, None),
            Some(record) if self.hosts.is_alive(&record.value.host) => {
                (record.revision, Some(record.value.host.clone()))
            }
            Some(record) if first => return self.take_over(lock_delay_ms, record, seen),
            Some(record) => (record.revision, None),
        };
        if seen.queued && !put {
            return Step::Queued;
        }
        let place = PlaceValue { lock_delay_ms, ttl_ms: millis_up(self.ttl) };
        Step::Write(Write::Enqueue { revision, place, wake })
    }

    fn take_over(&self, lock_delay_ms: u64, record: &Record, seen: &Seen) -> Step {
        // Others count the end of our belief from our last beat; it must not lie before what we note down here.
        if self.now >= self.leased_until {
            return Step::Unbelieving;
        }
        let until = self.quarantine_after(&record.value);
        let inherited_ms = millis_up(until.saturating_since(self.now));
        let lock_delay_ms = record.value.lock_delay_ms.max(lock_delay_ms);
        Step::Write(Write::TakeOver {
            revision: record.revision,
            dead: record.value.host.clone(),
            turn: if seen.queue.is_empty() { Turn::NobodyWaits } else { Turn::First },
            record: self.record(lock_delay_ms, inherited_ms),
        })
    }

    /// When everything that the dead owner of a record promised is over.
    pub(super) fn quarantine_after(&self, value: &RecordValue) -> Instant {
        let believed_until = self.hosts.believed_until(&value.host, Duration::from_millis(value.ttl_ms));
        believed_until + Duration::from_millis(value.lock_delay_ms.max(value.inherited_ms))
    }

    fn record(&self, lock_delay_ms: u64, inherited_ms: u64) -> RecordValue {
        RecordValue {
            host: self.me.to_owned(),
            ttl_ms: millis_up(self.ttl),
            lock_delay_ms,
            inherited_ms,
            since_unix_s: self.unix_s,
        }
    }

    fn give_up(&self, entry: Option<&Entry>, seen: Option<&Seen>) -> Step {
        let Some(seen) = seen else {
            return match entry {
                None => Step::Nothing,
                // Whoever waits is read first; a removal would be refused.
                Some(Entry::Owned(Owned { told: Told::Contended, .. })) => Step::Read,
                Some(Entry::Owned(owned)) => Step::Write(Write::Remove { revision: owned.revision }),
                Some(Entry::Queued(_) | Entry::Unsure) => Step::Write(Write::Leave),
            };
        };
        if seen.queued {
            return Step::Write(Write::Leave);
        }
        let Some(record) = self.ours(seen) else { return Step::Nothing };
        if !matches!(entry, Some(Entry::Owned(_))) && record.value.inherited_ms > 0 {
            let quarantined_until = self.quarantine_of(&record.value);
            return Step::KeptForQuarantine { record: record.clone(), quarantined_until };
        }
        let revision = record.revision;
        match seen.queue.first() {
            None => Step::Write(Write::Remove { revision }),
            Some(head) => {
                let record = RecordValue {
                    host: head.name.clone(),
                    ttl_ms: head.value.ttl_ms,
                    lock_delay_ms: head.value.lock_delay_ms,
                    inherited_ms: 0,
                    since_unix_s: self.unix_s,
                };
                Step::Write(Write::HandOver { revision, head: head.clone(), record })
            }
        }
    }

    fn look(&self, entry: Option<&Entry>, seen: Option<&Seen>) -> Step {
        match (entry, seen) {
            (None | Some(Entry::Unsure), _) => Step::Nothing,
            (Some(_), None) => Step::Read,
            (Some(Entry::Queued(queued)), Some(seen)) => match self.ours(seen) {
                Some(record) if record.value.lock_delay_ms >= queued.lock_delay_ms => self.handed(record),
                Some(record) => self.find(record, queued.lock_delay_ms),
                None => self.queue_up(queued.lock_delay_ms, seen, false),
            },
            (Some(Entry::Owned(_)), Some(seen)) => match self.ours(seen) {
                Some(record) => Step::Kept { revision: record.revision, rivals: seen.has_rivals(self.me) },
                None => Step::Lost,
            },
        }
    }

    fn ours<'s>(&self, seen: &'s Seen) -> Option<&'s Record> {
        seen.record.as_ref().filter(|record| record.value.host == self.me)
    }
}

/// Whole milliseconds, rounded up: what is remembered must not be less than what was promised.
pub(super) fn millis_up(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
}
