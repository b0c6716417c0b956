//! What to do next about one key: a pure function of what is wanted, what we know and what was read.

use std::time::Duration;

use turnstile_core::{ClaimId, Instant};

use super::hosts::Hosts;
use super::layout::{PlaceValue, RecordValue};
use super::table::{Entry, Owned};
use super::txn::{Place, Record, Rivals, Seen, Turn, Write};

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
    /// We are in the queue, and our turn has not come. The one whose turn it is should be told, if need be.
    Queued {
        nudge: Option<String>,
    },
    /// It is ours as we knew, now under this revision, and these wait.
    Kept {
        revision: i64,
        rivals: Rivals,
    },
    /// What we took for ours is not.
    Lost,
    /// It is ours and nobody wants it, but a dead owner's quarantine must be kept.
    KeptForQuarantine {
        record: Record,
        quarantined_until: Instant,
    },
    /// There is nothing of ours left. The one whose turn it is now should be told, if need be.
    Nothing {
        nudge: Option<String>,
    },
    /// Our turn has come, but we do not believe in our own lease at the moment.
    Unbelieving,
    /// The owner seems dead, but it is younger than our list of hosts.
    Unlisted,
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
            (Some(Entry::Owned(owned)), None) => self.raise(owned.revision, owned.lock_delay_ms, lock_delay_ms, owned),
            (Some(Entry::Owned(owned)), Some(seen)) => match self.ours(seen) {
                // An earlier raise landed although we were not told.
                Some(record) => self.raise(record.revision, record.value.lock_delay_ms, lock_delay_ms, owned),
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
    fn raise(&self, revision: i64, promised_ms: u64, lock_delay_ms: u64, owned: &Owned) -> Step {
        let inherited_ms = self.inherited_ms(owned.quarantined_until);
        let record = self.record(promised_ms.max(lock_delay_ms), inherited_ms);
        let record = RecordValue { since_unix_s: owned.since_unix_s, ..record };
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
        Step::Gained { record: record.clone(), quarantined_until: record.value.quarantine_from(self.now) }
    }

    /// The record is not ours. `put` the place again even if we have one (it may remember more).
    fn queue_up(&self, lock_delay_ms: u64, seen: &Seen, put: bool) -> Step {
        let first = seen.first().is_none_or(|first| first == self.me);
        let head = || seen.first().map(str::to_owned);
        let (revision, wake) = match &seen.record {
            None if first => return Step::Write(Write::Create { record: self.record(lock_delay_ms, 0) }),
            None => (0, head()),
            Some(record) if self.hosts.is_alive(&record.value.host) => {
                (record.revision, Some(record.value.host.clone()))
            }
            Some(record) if first => return self.take_over(lock_delay_ms, record, seen),
            Some(record) => (record.revision, head()),
        };
        if seen.queued && !put {
            // Nobody but the first in the queue can follow a dead owner: it may not know.
            let behind = seen.record.as_ref().is_none_or(|record| !self.hosts.is_alive(&record.value.host));
            return Step::Queued { nudge: wake.filter(|_| behind) };
        }
        let place = PlaceValue { lock_delay_ms, ttl_ms: millis_up(self.ttl) };
        Step::Write(Write::Enqueue { revision, place, wake })
    }

    fn take_over(&self, lock_delay_ms: u64, record: &Record, seen: &Seen) -> Step {
        // Others count the end of our belief from our last beat; it must not lie before what we note down here.
        if self.now >= self.leased_until {
            return Step::Unbelieving;
        }
        let Some(until) = self.quarantine_after(record) else { return Step::Unlisted };
        let inherited_ms = self.inherited_ms(until);
        let lock_delay_ms = record.value.lock_delay_ms.max(lock_delay_ms);
        Step::Write(Write::TakeOver {
            revision: record.revision,
            dead: record.value.host.clone(),
            turn: if seen.queue.is_empty() { Turn::NobodyWaits } else { Turn::First },
            record: self.record(lock_delay_ms, inherited_ms),
            until,
        })
    }

    /// When everything that the dead owner of a record promised is over.
    fn quarantine_after(&self, record: &Record) -> Option<Instant> {
        let value = &record.value;
        let ttl = Duration::from_millis(value.ttl_ms);
        let believed_until = self.hosts.believed_until(&value.host, ttl, record.revision)?;
        Some(believed_until + Duration::from_millis(value.lock_delay_ms.max(value.inherited_ms)))
    }

    /// What a record must say of a quarantine that lasts `until`. Whoever finds it counts from when it knows of it, or
    /// from the end of our belief, and on a clock of its own that may be 1 % faster, where ours may be 1 % slower.
    fn inherited_ms(&self, until: Instant) -> u64 {
        let left = until.saturating_since(self.now);
        if left.is_zero() { 0 } else { millis_up(until.saturating_since(self.now.min(self.leased_until)) * 51 / 50) }
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
                None => Step::Nothing { nudge: None },
                Some(Entry::Owned(owned)) => self.pass_on(owned.revision, &owned.rivals),
                Some(Entry::Queued(_)) => Step::Write(Write::Leave),
                Some(Entry::Unsure) => Step::Read,
            };
        };
        if seen.queued {
            return Step::Write(Write::Leave);
        }
        let Some(record) = self.ours(seen) else {
            let orphan = seen.record.as_ref().is_none_or(|record| !self.hosts.is_alive(&record.value.host));
            return Step::Nothing { nudge: seen.first().filter(|_| orphan).map(str::to_owned) };
        };
        if !matches!(entry, Some(Entry::Owned(_))) && record.value.inherited_ms > 0 {
            let quarantined_until = record.value.quarantine_from(self.now);
            return Step::KeptForQuarantine { record: record.clone(), quarantined_until };
        }
        self.pass_on(record.revision, &seen.rivals(self.me))
    }

    /// To the first in the queue, as far as we know of one.
    fn pass_on(&self, revision: i64, rivals: &Rivals) -> Step {
        match rivals {
            Rivals::Unknown => Step::Read,
            Rivals::None => Step::Write(Write::Remove { revision }),
            Rivals::Known { first, more } => {
                let head = Place::clone(first);
                let record = RecordValue {
                    host: head.name.clone(),
                    ttl_ms: head.value.ttl_ms,
                    lock_delay_ms: head.value.lock_delay_ms,
                    inherited_ms: 0,
                    since_unix_s: self.unix_s,
                };
                Step::Write(Write::HandOver { revision, head, record, more: *more })
            }
        }
    }

    fn look(&self, entry: Option<&Entry>, seen: Option<&Seen>) -> Step {
        match (entry, seen) {
            (None | Some(Entry::Unsure), _) => Step::Nothing { nudge: None },
            (Some(_), None) => Step::Read,
            (Some(Entry::Queued(queued)), Some(seen)) => match self.ours(seen) {
                Some(record) if record.value.lock_delay_ms >= queued.lock_delay_ms => self.handed(record),
                Some(record) => self.find(record, queued.lock_delay_ms),
                None => self.queue_up(queued.lock_delay_ms, seen, false),
            },
            (Some(Entry::Owned(_)), Some(seen)) => match self.ours(seen) {
                Some(record) => Step::Kept { revision: record.revision, rivals: seen.rivals(self.me) },
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

#[cfg(test)]
mod tests {
    use super::super::hosts::{News, Sight};
    use super::super::table::{Queued, Told};
    use super::*;

    const TTL: Duration = Duration::from_secs(5);
    const NOW: Instant = Instant::from_micros(100_000_000);

    /// "alive" lives; "dead" was seen to die four seconds ago, right after a beat.
    fn hosts() -> Hosts {
        let mut hosts = Hosts::default();
        let sight = |name: &str| Sight { name: name.into(), created: 1, written: 1, ttl: TTL };
        hosts.list(vec![sight("me"), sight("alive"), sight("dead")], 10, Instant::from_micros(90_000_000));
        hosts.hear(News::Beat(Sight { written: 11, ..sight("dead") }), Instant::from_micros(96_000_000));
        let gone = News::Gone { name: "dead".into(), revision: 12, written: Some(11) };
        hosts.hear(gone, Instant::from_micros(96_000_000));
        hosts
    }

    fn step(want: Want, entry: Option<Entry>, seen: Option<Seen>) -> Step {
        let leased_until = NOW + TTL;
        Circumstances { me: "me", ttl: TTL, hosts: &hosts(), now: NOW, leased_until, unix_s: 7 }.step(
            want,
            entry.as_ref(),
            seen.as_ref(),
        )
    }

    fn claim(lock_delay_ms: u64) -> Want {
        Want::Claim { claim: ClaimId(1), lock_delay_ms, new_epoch: false }
    }

    fn value(host: &str, lock_delay_ms: u64, inherited_ms: u64) -> RecordValue {
        RecordValue { host: host.into(), ttl_ms: 5_000, lock_delay_ms, inherited_ms, since_unix_s: 7 }
    }

    fn owned_by(host: &str, queue: &[&str]) -> Seen {
        let place = |name: &&str| Place {
            name: (*name).into(),
            value: PlaceValue { lock_delay_ms: 30, ttl_ms: 5_000 },
            revision: 40,
        };
        Seen {
            record: Some(Record { value: value(host, 1_000, 0), revision: 33 }),
            queue: queue.iter().map(place).collect(),
            queued: queue.contains(&"me"),
        }
    }

    fn queued() -> Option<Entry> {
        Some(Entry::Queued(Queued { claim: ClaimId(1), lock_delay_ms: 100, revision: 20 }))
    }

    fn owned(quarantined_until: Instant, told: Told) -> Option<Entry> {
        let (revision, lock_delay_ms, since_unix_s) = (33, 1_000, 7);
        let rivals = Rivals::None;
        Some(Entry::Owned(Owned { revision, lock_delay_ms, since_unix_s, quarantined_until, told, rivals, swept: 0 }))
    }

    #[test]
    fn a_free_key_is_created_without_looking() {
        assert_eq!(step(claim(100), None, None), Step::Write(Write::Create { record: value("me", 100, 0) }));
    }

    #[test]
    fn behind_a_live_owner_one_queues_and_wakes_it() {
        let Step::Write(Write::Enqueue { revision, wake, .. }) = step(claim(100), None, Some(owned_by("alive", &[])))
        else {
            panic!()
        };
        assert_eq!((revision, wake.as_deref()), (33, Some("alive")));
        let stays = step(Want::Look, queued(), Some(owned_by("alive", &["me"])));
        assert_eq!(stays, Step::Queued { nudge: None });
    }

    #[test]
    fn a_dead_owner_is_followed_by_the_first_in_the_queue_only() {
        let turn = |queue: &[&str]| match step(Want::Look, queued(), Some(owned_by("dead", queue))) {
            Step::Write(Write::TakeOver { turn, .. }) => Some(turn),
            Step::Queued { nudge } => {
                assert_eq!(nudge.as_deref(), Some("alive"), "who may not know that it is its turn");
                None
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(turn(&["me", "alive"]), Some(Turn::First));
        assert_eq!(turn(&["alive", "me"]), None);
        let direct = step(claim(100), None, Some(owned_by("dead", &[])));
        assert!(matches!(direct, Step::Write(Write::TakeOver { turn: Turn::NobodyWaits, .. })), "{direct:?}");
        let behind = step(claim(100), None, Some(owned_by("dead", &["alive"])));
        assert!(matches!(behind, Step::Write(Write::Enqueue { wake: Some(_), .. })), "{behind:?}");
    }

    /// Its belief may last for a second more, and then its lock delay of a second.
    #[test]
    fn what_a_dead_owner_promised_is_remembered() {
        let Step::Write(Write::TakeOver { record, dead, revision, until, .. }) =
            step(claim(100), None, Some(owned_by("dead", &[])))
        else {
            panic!()
        };
        assert_eq!((dead.as_str(), revision), ("dead", 33));
        assert_eq!((record, until), (value("me", 1_000, 2_040), NOW + Duration::from_secs(2)));
    }

    #[test]
    fn nobody_is_followed_that_may_have_joined_since_the_list() {
        assert_eq!(step(claim(100), None, Some(owned_by("unknown", &[]))), Step::Unlisted);
    }

    #[test]
    fn nobody_is_followed_without_a_lease() {
        let circumstances =
            Circumstances { me: "me", ttl: TTL, hosts: &hosts(), now: NOW, leased_until: NOW, unix_s: 7 };
        let seen = owned_by("dead", &[]);
        assert_eq!(circumstances.step(claim(100), None, Some(&seen)), Step::Unbelieving);
    }

    #[test]
    fn a_record_that_was_handed_over_is_gained_as_it_is() {
        let Step::Gained { record, quarantined_until } = step(Want::Look, queued(), Some(owned_by("me", &[]))) else {
            panic!()
        };
        assert_eq!((record.revision, quarantined_until), (33, Instant::default()));
    }

    /// Nobody knows what was granted under its epoch.
    #[test]
    fn a_record_that_is_found_goes_on_under_a_new_epoch_and_keeps_its_quarantine() {
        let mut seen = owned_by("me", &[]);
        if let Some(record) = &mut seen.record {
            record.value.inherited_ms = 900;
        }
        for entry in [None, Some(Entry::Unsure)] {
            let found = step(claim(2_000), entry, Some(seen.clone()));
            assert_eq!(found, Step::Write(Write::Raise { revision: 33, record: value("me", 2_000, 900) }));
        }
    }

    #[test]
    fn a_raise_keeps_what_is_left_of_a_quarantine() {
        let quarantined_until = NOW + Duration::from_millis(300);
        let raised = step(claim(100), owned(quarantined_until, Told::Gained), None);
        assert_eq!(raised, Step::Write(Write::Raise { revision: 33, record: value("me", 1_000, 306) }));
        let over = step(claim(100), owned(Instant::default(), Told::Gained), None);
        assert_eq!(over, Step::Write(Write::Raise { revision: 33, record: value("me", 1_000, 0) }));
    }

    #[test]
    fn whoever_waits_first_gets_the_record() {
        let blind = step(Want::Yield, owned(Instant::default(), Told::Gained), None);
        assert_eq!(blind, Step::Write(Write::Remove { revision: 33 }));
        let seen = owned_by("me", &["alive", "other"]);
        let mut knowing = owned(Instant::default(), Told::Contended);
        if let Some(Entry::Owned(owned)) = &mut knowing {
            owned.rivals = seen.rivals("me");
        }
        for (entry, seen) in [(owned(Instant::default(), Told::Contended), Some(seen)), (knowing, None)] {
            let Step::Write(Write::HandOver { revision, head, record, more: true }) = step(Want::Yield, entry, seen)
            else {
                panic!()
            };
            assert_eq!((revision, head.name.as_str(), head.revision), (33, "alive", 40));
            assert_eq!(record, value("alive", 30, 0));
        }
    }

    #[test]
    fn who_leaves_the_queue_of_a_dead_owner_tells_the_next() {
        let nudge = |owner: &str| match step(Want::Yield, queued(), Some(owned_by(owner, &["other"]))) {
            Step::Nothing { nudge } => nudge,
            step => panic!("{step:?}"),
        };
        assert_eq!(nudge("dead").as_deref(), Some("other"));
        assert_eq!(nudge("alive"), None);
    }

    #[test]
    fn a_record_in_quarantine_that_nobody_wants_is_kept() {
        let mut seen = owned_by("me", &[]);
        if let Some(record) = &mut seen.record {
            record.value.inherited_ms = 900;
        }
        let kept = step(Want::Yield, Some(Entry::Unsure), Some(seen));
        assert!(
            matches!(kept, Step::KeptForQuarantine { quarantined_until, .. }
                if quarantined_until == NOW + Duration::from_millis(900)),
            "{kept:?}"
        );
    }

    #[test]
    fn what_is_not_ours_any_more_is_lost() {
        let entry = || owned(Instant::default(), Told::Gained);
        assert_eq!(step(Want::Look, entry(), Some(owned_by("alive", &[]))), Step::Lost);
        assert_eq!(step(claim(100), entry(), Some(Seen::default())), Step::Lost);
        let rivals = step(Want::Look, entry(), Some(owned_by("me", &["alive"])));
        assert!(matches!(rivals, Step::Kept { revision: 33, rivals: Rivals::Known { more: false, .. } }), "{rivals:?}");
        let mut unknown = entry();
        if let Some(Entry::Owned(owned)) = &mut unknown {
            owned.rivals = Rivals::Unknown;
        }
        assert_eq!(step(Want::Yield, unknown, None), Step::Read);
    }
}
