//! The worker without its thread: commits that land although they fail, step by step.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use turnstile_core::{ClaimId, Epoch, Instant, LockKey};

use super::database::Database;
use super::transaction::faults::fail_next_commit;
use super::worker::{Phase, Worker};
use super::{Config, Shared};
use crate::clock;
use crate::store::{Event, Operation, StoreError};

/// Long, so that no beat comes in between unasked.
const LEASE_TTL: Duration = Duration::from_secs(600);

struct Bench {
    directory: TempDir,
    worker: Worker,
    events: UnboundedReceiver<Event>,
}

impl Bench {
    fn new() -> Self {
        Self::with(LEASE_TTL)
    }

    fn with(lease_ttl: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = Config { path: directory.path().join("t.db"), lease_ttl, epoch_base: 0 };
        let database = Database::open(&config.path, 0).unwrap();
        let (sender, events) = unbounded_channel();
        let worker = Worker::new(config, database, mpsc::channel().1, sender, Arc::new(Shared::default()));
        let mut bench = Self { directory, worker, events };
        assert!(matches!(bench.step()[..], [Event::LeaseRenewed { .. }]));
        bench
    }

    fn step(&mut self) -> Vec<Event> {
        self.worker.next_batch = clock::now();
        self.worker.step();
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }

    fn claim(&mut self, claim: u64, new_epoch: bool) -> Vec<Event> {
        let (claim, lock_delay) = (ClaimId(claim), Duration::ZERO);
        self.worker.pending.push(Operation::Claim { key: account(), claim, lock_delay, new_epoch });
        self.step()
    }

    fn give_up(&mut self) -> Vec<Event> {
        self.worker.pending.push(Operation::Yield { key: account() });
        self.step()
    }

    fn file(&self) -> Connection {
        Connection::open(self.directory.path().join("t.db")).unwrap()
    }

    /// The key belongs to an incarnation that is marked dead.
    fn plant_dead_owner(&self, lock_delay_ms: u32) {
        let sql = format!(
            "INSERT INTO incarnations (name, beat, ttl_ms, dead) VALUES ('late', 1, 1000, 1);
             INSERT INTO ownerships (key, incarnation, epoch, lock_delay_ms, inherited_ms)
                VALUES ('t/account', 'late', 1, {lock_delay_ms}, 0);
             UPDATE store SET epoch = 1;"
        );
        self.file().execute_batch(&sql).unwrap();
    }

    fn record(&self) -> Option<u64> {
        let found = self.file().query_row("SELECT epoch FROM ownerships", [], |row| row.get::<_, i64>(0));
        found.ok().map(i64::unsigned_abs)
    }
}

fn account() -> LockKey {
    key("t/account")
}

fn key(text: &str) -> LockKey {
    LockKey::parse(text).unwrap()
}

fn claim_of(text: &str, claim: u64) -> Operation {
    Operation::Claim { key: key(text), claim: ClaimId(claim), lock_delay: Duration::ZERO, new_epoch: false }
}

fn gained_keys(events: &[Event]) -> Vec<LockKey> {
    let keys = events.iter().filter_map(|event| match event {
        Event::Gained { key, .. } => Some(key.clone()),
        _ => None,
    });
    keys.collect()
}

fn gained(events: &[Event]) -> (u64, Instant) {
    match events {
        [Event::Gained { epoch: Epoch(epoch), quarantined_until, .. }] => (*epoch, *quarantined_until),
        _ => panic!("{events:?}"),
    }
}

fn assert_ambiguous(events: &[Event]) {
    assert!(matches!(events, [Event::Failed { error: StoreError::Ambiguous(_), .. }]), "{events:?}");
}

#[test]
fn a_claim_that_landed_unnoticed_is_claimed_again_under_a_fresh_epoch() {
    let mut bench = Bench::new();
    fail_next_commit();
    assert_ambiguous(&bench.claim(1, false));
    let landed = bench.record().expect("the commit landed");
    assert!(gained(&bench.claim(2, false)).0 > landed);
}

#[test]
fn a_claim_that_landed_unnoticed_and_is_wanted_no_more_is_given_up() {
    let mut bench = Bench::new();
    fail_next_commit();
    assert_ambiguous(&bench.claim(1, false));
    assert!(bench.record().is_some());
    bench.worker.upkeep();
    assert_eq!((bench.step(), bench.record()), (vec![], None));
}

#[test]
fn an_epoch_raised_unnoticed_is_raised_again() {
    let mut bench = Bench::new();
    let first = gained(&bench.claim(1, false)).0;
    fail_next_commit();
    assert_ambiguous(&bench.claim(2, true));
    let landed = bench.record().unwrap();
    assert!(landed > first);
    assert!(gained(&bench.claim(3, true)).0 > landed);
}

#[test]
fn a_yield_that_landed_unnoticed_is_no_loss_and_no_second_yield() {
    let mut bench = Bench::new();
    let first = gained(&bench.claim(1, false)).0;
    fail_next_commit();
    assert_eq!((bench.give_up(), bench.record()), (vec![], None));
    assert_eq!(bench.step(), [], "once more, to be sure");
    assert!(gained(&bench.claim(2, false)).0 > first);
    bench.worker.upkeep();
    assert_eq!(bench.step(), []);
    assert!(bench.record().is_some());
}

/// The record of a dead owner, taken over by a write that seemed to fail: its quarantine must not get lost.
#[test]
fn a_takeover_that_landed_unnoticed_keeps_its_quarantine() {
    let delay = Duration::from_secs(50);
    for again in [true, false] {
        let mut bench = Bench::new();
        bench.plant_dead_owner(50_000);
        let before = clock::now();
        fail_next_commit();
        assert_ambiguous(&bench.claim(1, false));
        if again {
            assert!(gained(&bench.claim(2, false)).1 >= before + delay);
        }
        bench.give_up();
        bench.worker.upkeep();
        bench.step();
        assert!(bench.record().is_some(), "given up in its quarantine");
        assert!(gained(&bench.claim(3, false)).1 >= before + delay);
    }
}

/// Once the quarantine has passed it does not come back, not even by an epoch raised unnoticed.
#[test]
fn a_quarantine_that_has_passed_is_over() {
    let mut bench = Bench::new();
    bench.plant_dead_owner(1);
    let (_, quarantined_until) = gained(&bench.claim(1, false));
    while clock::now() <= quarantined_until {
        std::thread::sleep(Duration::from_millis(1));
    }
    fail_next_commit();
    assert_ambiguous(&bench.claim(2, true));
    assert!(gained(&bench.claim(3, true)).1 <= clock::now());
}

/// One key that is claimed and given up faster than the disk can follow.
#[test]
fn a_hot_key_keeps_no_other_waiting() {
    let mut bench = Bench::new();
    for claim in 1..=10_000 {
        bench.worker.pending.push(claim_of("t/hot", claim));
        bench.worker.pending.push(Operation::Yield { key: key("t/hot") });
    }
    bench.worker.pending.push(claim_of("t/other", 10_001));
    assert!(gained_keys(&bench.step()).contains(&key("t/other")), "in one commit");
    bench.step();
    assert!(bench.worker.pending.is_empty(), "the queue is as long as the disk is slow");
    // These have to be carried out each.
    for claim in 10_002..=10_100 {
        bench.worker.pending.push(claim_of("t/hot", claim));
    }
    bench.worker.pending.push(claim_of("t/third", 10_101));
    assert!(gained_keys(&bench.step()).contains(&key("t/third")), "in one commit");
}

#[test]
fn yields_that_fail_keep_no_claim_waiting() {
    let mut bench = Bench::new();
    for n in 0..300 {
        bench.worker.pending.push(Operation::Yield { key: key(&format!("t/{n}")) });
    }
    bench.worker.pending.push(claim_of("t/other", 1));
    fail_next_commit();
    assert_eq!(bench.step(), []);
    assert_eq!(gained_keys(&bench.step()), [key("t/other")]);
}

#[test]
fn a_beat_that_landed_unnoticed_does_not_cost_the_lease() {
    let mut bench = Bench::new();
    for _ in 0..2 {
        fail_next_commit();
        bench.worker.beat();
        assert!(bench.events.try_recv().is_err(), "not renewed, as far as we know");
    }
    bench.worker.beat();
    assert!(matches!(bench.events.try_recv(), Ok(Event::LeaseRenewed { .. })));
    gained(&bench.claim(1, false));
}

/// The end of a lease that landed unnoticed finds its row gone.
#[test]
fn a_lease_that_ended_unnoticed_has_ended() {
    let mut bench = Bench::new();
    gained(&bench.claim(1, false));
    bench.worker.pending.push(Operation::EndLease);
    fail_next_commit();
    assert_eq!(bench.step(), []);
    assert_eq!(bench.step(), [Event::LeaseLost, Event::LeaseEnded]);
}

/// A very recent backup was put back in place: nothing in it is older than our beat.
#[test]
fn a_beat_that_went_back_is_a_restored_file() {
    let mut bench = Bench::new();
    bench.worker.beat();
    bench.worker.beat();
    bench.step();
    bench.file().execute_batch("UPDATE incarnations SET beat = beat - 1").unwrap();
    let events = bench.claim(1, false);
    assert!(matches!(events[..], [Event::Failed { .. }, Event::LeaseLost]), "{events:?}");
    assert_eq!(bench.step(), [], "what was granted before has to pass first");
}

/// A transaction that could neither be committed nor rolled back lets no other begin on its connection.
#[test]
fn a_connection_that_is_stuck_is_given_up() {
    let mut bench = Bench::with(Duration::from_millis(200));
    let Phase::Member { database, .. } = &bench.worker.phase else { panic!("has no lease") };
    database.connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (mut events, end) = (Vec::new(), clock::now() + Duration::from_secs(20));
    while !matches!(events[..], [Event::LeaseLost, Event::LeaseRenewed { .. }, ..]) {
        assert!(clock::now() < end, "{events:?}");
        events.extend(bench.step());
        std::thread::sleep(Duration::from_millis(5));
    }
    gained(&bench.claim(1, false));
}

/// Some dead have records that nobody wants and that may not go yet; the others do not have to wait for that.
#[test]
fn all_the_dead_are_cleaned_up_in_turn() {
    let mut bench = Bench::new();
    for n in 1..=20 {
        let sql = format!(
            "INSERT INTO incarnations (name, beat, ttl_ms, dead) VALUES ('{n}', 1, 1000, 1);
             INSERT INTO ownerships (key, incarnation, epoch, lock_delay_ms, inherited_ms)
                VALUES ('t/{n}', '{n}', {n}, 600000, 0);
             UPDATE store SET epoch = {n};"
        );
        bench.file().execute_batch(&sql).unwrap();
    }
    bench.file().execute_batch("INSERT INTO incarnations (name, beat, ttl_ms, dead) VALUES ('3x', 1, 1, 1)").unwrap();
    bench.worker.data_version = None;
    bench.step();
    for _ in 0..6 {
        bench.worker.upkeep();
    }
    let sql = "SELECT count(*), sum(name = '3x') FROM incarnations WHERE dead = 1";
    let left: (u32, u32) = bench.file().query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(left, (20, 0));
}

/// Even before the next beat is due: every write looks first.
#[test]
fn nothing_is_granted_to_a_host_that_was_marked_or_forgotten() {
    for done_to_us in [
        "UPDATE incarnations SET dead = 1",
        "DELETE FROM incarnations",
        "UPDATE incarnations SET beat = -1",
        "UPDATE incarnations SET beat = beat + 1",
    ] {
        let mut bench = Bench::new();
        bench.file().execute_batch(done_to_us).unwrap();
        let events = bench.claim(1, false);
        assert!(matches!(events[..], [Event::Failed { .. }, Event::LeaseLost]), "after {done_to_us}: {events:?}");
        assert_eq!(bench.record(), None);
        assert!(matches!(bench.step()[..], [Event::LeaseRenewed { .. }]), "it goes on as another incarnation");
        gained(&bench.claim(2, false));
    }
}
