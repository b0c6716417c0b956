//! The SQLite store: the conformance suite, and what only a database file can do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod conformance;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use conformance::hosts::{Host, key};
use conformance::{Harness, conformance};
use rusqlite::{Connection, TransactionBehavior};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use turnstile_core::{ClaimId, Epoch, Token};
use turnstile_host::clock;
use turnstile_host::store::sqlite::{Config, OpenError, SqliteStore};
use turnstile_host::store::{Event, Operation, Store, StoreError};

const LEASE_TTL: Duration = Duration::from_millis(800);
/// Names the database for a child process of this test binary.
const CHILD_PATH: &str = "TURNSTILE_TEST_DATABASE";

/// One database file in a directory of its own.
struct File {
    directory: TempDir,
    epoch_base: u64,
}

fn file() -> File {
    File { directory: tempfile::tempdir().unwrap(), epoch_base: 0 }
}

impl File {
    fn path(&self) -> PathBuf {
        self.directory.path().join("turnstile.db")
    }

    fn config(&self) -> Config {
        Config { path: self.path(), lease_ttl: LEASE_TTL, epoch_base: self.epoch_base }
    }
}

impl Harness for File {
    fn lease_ttl(&self) -> Duration {
        LEASE_TTL
    }

    async fn open(&self) -> (Arc<dyn Store>, UnboundedReceiver<Event>) {
        let (sender, events) = unbounded_channel();
        (Arc::new(SqliteStore::open(self.config(), sender).unwrap()), events)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child_process", "--nocapture"]).env(CHILD_PATH, self.path());
        command
    }
}

/// The same file for processes whose files may not grow beyond some size, which is a full disk to them.
struct Limited<'a>(&'a File);

impl File {
    fn limited(&self) -> Limited<'_> {
        Limited(self)
    }
}

impl Harness for Limited<'_> {
    fn lease_ttl(&self) -> Duration {
        LEASE_TTL
    }

    async fn open(&self) -> (Arc<dyn Store>, UnboundedReceiver<Event>) {
        self.0.open().await
    }

    fn command(&self) -> Command {
        let inner = self.0.command();
        let mut command = Command::new("sh");
        // Units of 512 bytes. The signal is ignored, so that the write fails with an error instead.
        command.args(["-c", "trap '' XFSZ; ulimit -f 600; exec \"$0\" \"$@\""]).arg(inner.get_program());
        command.args(inner.get_args()).env(CHILD_PATH, self.0.path());
        command
    }
}

/// In a child process this is its body; [`File::command`] starts it so. In the test run it tests just that.
#[test]
fn child_process() {
    let Some(path) = std::env::var_os(CHILD_PATH) else { return a_child_process_keeps_a_lease() };
    let (sender, events) = unbounded_channel();
    let store = SqliteStore::open(Config { path: path.into(), lease_ttl: LEASE_TTL, epoch_base: 0 }, sender).unwrap();
    conformance::process::serve(&store, events);
}

fn a_child_process_keeps_a_lease() {
    let file = file();
    let (mut process, mut events) = conformance::process::Process::spawn(file.command());
    for _ in 0..2 {
        assert!(matches!(events.blocking_recv(), Some(Event::LeaseRenewed { .. })), "the child does not serve");
    }
    process.kill();
    while let Some(event) = events.blocking_recv() {
        assert!(matches!(event, Event::LeaseRenewed { .. }), "{event:?}");
    }
}

conformance!(file);

/// A connection as an operator's `sqlite3` would open it.
fn by_hand(file: &File) -> Connection {
    let connection = Connection::open(file.path()).unwrap();
    connection.busy_timeout(Duration::from_secs(20)).unwrap();
    connection
}

fn open_error(config: Config) -> OpenError {
    SqliteStore::open(config, unbounded_channel().0).err().expect("must not open")
}

#[test]
fn opening_says_what_is_wrong() {
    let file = file();
    let config = |path: PathBuf| Config { path, ..file.config() };
    let directory = file.directory.path();
    let missing = open_error(config(directory.join("missing/turnstile.db")));
    assert!(matches!(missing, OpenError::NoDirectory { .. }), "{missing}");
    let text = directory.join("text.db");
    std::fs::write(&text, "this is no database, whatever its name says; it is a text of some length".repeat(20))
        .unwrap();
    assert!(matches!(open_error(config(text)), OpenError::NotOurs { .. }));
    let foreign = directory.join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE people (name TEXT)").unwrap();
    assert!(matches!(open_error(config(foreign)), OpenError::NotOurs { .. }));
    assert!(matches!(open_error(config(directory.to_owned())), OpenError::CannotOpen { .. }));
    drop(SqliteStore::open(file.config(), unbounded_channel().0).unwrap());
    by_hand(&file).execute_batch("PRAGMA user_version = 2").unwrap();
    let newer = open_error(file.config());
    assert!(matches!(newer, OpenError::NewerSchema { found: 2, known: 1, .. }), "{newer}");
    let ttl = Config { lease_ttl: Duration::from_millis(1), ..file.config() };
    assert!(matches!(open_error(ttl), OpenError::LeaseTtl { .. }));
    let base = Config { epoch_base: u64::MAX, ..file.config() };
    assert!(matches!(open_error(base), OpenError::EpochBase { .. }));
}

#[tokio::test]
async fn epoch_base_lifts_epochs_and_never_lowers_them() {
    let mut file = File { epoch_base: 5_000, ..file() };
    let mut a = Host::start(&file).await;
    assert_eq!(a.take(&key("t/a"), Duration::ZERO).await.epoch, Epoch(5_001));
    a.end_lease().await;
    file.epoch_base = 7;
    let mut b = Host::start(&file).await;
    assert_eq!(b.take(&key("t/a"), Duration::ZERO).await.epoch, Epoch(5_002));
}

#[tokio::test]
async fn epochs_that_are_used_up_stop_claims_for_good() {
    let file = File { epoch_base: Token::EPOCH_MAX.0 - 1, ..file() };
    let mut a = Host::start(&file).await;
    assert_eq!(a.take(&key("t/a"), Duration::ZERO).await.epoch, Token::EPOCH_MAX);
    a.claim(&key("t/b"), Duration::ZERO);
    let error = a.failed(&key("t/b")).await;
    assert!(matches!(error, StoreError::Rejected(_)), "{error}");
}

#[tokio::test]
async fn what_is_claimed_at_once_is_committed_at_once() {
    let file = file();
    let (sender, mut events) = unbounded_channel();
    let store = SqliteStore::open(file.config(), sender).unwrap();
    // Holds the file until all is submitted.
    let other = by_hand(&file);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let before = store.commits();
    for n in 0..500 {
        let key = key(&format!("t/{n}"));
        store.submit(Operation::Claim { key, claim: ClaimId(n), lock_delay: Duration::ZERO, new_epoch: false });
    }
    other.execute_batch("ROLLBACK").unwrap();
    let (mut gained, mut renewed) = (0, 0);
    while gained < 500 {
        match events.recv().await.unwrap() {
            Event::Gained { .. } => gained += 1,
            Event::LeaseRenewed { .. } => renewed += 1,
            Event::Failed { key, claim, .. } => {
                store.submit(Operation::Claim { key, claim, lock_delay: Duration::ZERO, new_epoch: false });
            }
            other => panic!("{other:?}"),
        }
    }
    let commits = store.commits() - before;
    assert!(commits <= 20 + renewed, "500 claims took {commits} commits");
}

/// While another process holds the write lock, nothing is granted and nobody is taken for dead; afterwards all goes on.
#[tokio::test]
async fn a_locked_database_is_waited_out() {
    let file = file();
    let (mut a, mut b) = (Host::start(&file).await, Host::start(&file).await);
    let (mine, wanted) = (key("t/mine"), key("t/wanted"));
    let epoch = a.take(&mine, Duration::ZERO).await.epoch;
    b.queue_for(&mine, Duration::ZERO).await;
    a.report_failures();
    let other = by_hand(&file);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    a.claim(&wanted, Duration::ZERO);
    let error = a.failed(&wanted).await;
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    let (lease_a, lease_b) = (a.leased_until, b.leased_until);
    tokio::time::sleep(LEASE_TTL * 2).await;
    a.drain();
    b.drain();
    assert!(a.leased_until == lease_a && b.leased_until == lease_b, "a lease was renewed without a commit");
    other.execute_batch("ROLLBACK").unwrap();
    a.settle().await;
    b.settle().await;
    let lost = |event: &Event| *event == Event::LeaseLost;
    assert_eq!(a.count(lost) + b.count(lost), 0, "what hindered all of them is nobody's death");
    assert!(a.take(&mine, Duration::ZERO).await.epoch > epoch);
    a.give_up(&mine);
    b.gained(&mine).await;
}

#[tokio::test]
async fn a_yield_gets_through_at_last() {
    let file = file();
    let (mut a, mut b) = (Host::start(&file).await, Host::start(&file).await);
    let account = key("t/account");
    a.take(&account, Duration::ZERO).await;
    b.queue_for(&account, Duration::ZERO).await;
    let other = by_hand(&file);
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    a.give_up(&account);
    tokio::time::sleep(LEASE_TTL / 2).await;
    assert!(!b.has_gained(&account));
    other.execute_batch("ROLLBACK").unwrap();
    b.gained(&account).await;
}

#[tokio::test]
async fn a_row_that_was_removed_is_a_lost_lease() {
    let file = file();
    let mut a = Host::start(&file).await;
    a.take(&key("t/a"), Duration::from_millis(300)).await;
    let lease = a.leased_until;
    by_hand(&file).execute_batch("DELETE FROM incarnations").unwrap();
    a.lease_lost().await;
    // It goes on, and waits for the record of its former self like for anybody's.
    a.renewed().await;
    a.claim(&key("t/a"), Duration::ZERO);
    let gained = a.gained(&key("t/a")).await;
    assert!(gained.quarantined_until >= lease + Duration::from_millis(300), "{gained:?} in the lease until {lease:?}");
}

#[tokio::test]
async fn a_record_that_was_taken_away_is_reported() {
    let file = file();
    let mut a = Host::start(&file).await;
    let epoch = a.take(&key("t/a"), Duration::ZERO).await.epoch;
    a.take(&key("t/b"), Duration::ZERO).await;
    by_hand(&file).execute_batch("DELETE FROM ownerships WHERE key = 't/a'").unwrap();
    a.lost(&key("t/a")).await;
    assert!(a.take(&key("t/a"), Duration::ZERO).await.epoch > epoch);
    a.settle().await;
    assert_eq!(a.count(|event| matches!(event, Event::Lost { .. } | Event::LeaseLost)), 0);
}

/// A claim of a key that is owned already finds out before any sweep: the loss is told before the claim is answered.
#[tokio::test]
async fn a_record_that_was_taken_away_is_reported_before_a_claim_is_answered() {
    let file = file();
    let (mut a, mut b) = (Host::start(&file).await, Host::start(&file).await);
    b.take(&key("t/of-b"), Duration::ZERO).await;
    let lost = |event: &Event| matches!(event, Event::Lost { key: lost } if *lost == key("t/a"));
    let connection = by_hand(&file);
    for change in [
        "UPDATE ownerships SET incarnation = (SELECT incarnation FROM ownerships WHERE key = 't/of-b')
            WHERE key = 't/a'",
        "DELETE FROM ownerships WHERE key = 't/a'",
    ] {
        a.drain();
        a.take(&key("t/a"), Duration::ZERO).await;
        // Sweeps follow beats, which wait as long as the file is locked.
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        a.drain();
        a.claim(&key("t/a"), Duration::ZERO);
        connection.execute_batch(change).unwrap();
        connection.execute_batch("COMMIT").unwrap();
        let answer = |event: &Event| matches!(event, Event::Queued { .. } | Event::Gained { .. });
        a.wait("an answer", answer).await;
        assert_eq!(a.count_before_last_wait(lost), 1, "after {change}");
        a.settle().await;
        assert_eq!(a.count(lost), 1, "reported once");
        a.give_up(&key("t/a"));
        connection.execute_batch("DELETE FROM ownerships WHERE key = 't/a'").unwrap();
        a.settle().await;
    }
    assert_eq!(a.count(|event| *event == Event::LeaseLost), 0);
}

/// A write that was believed failed but landed: a record of this incarnation that its process does not know.
#[tokio::test]
async fn a_ghost_is_found_and_given_up_or_claimed_anew() {
    let file = file();
    let (mut a, mut b) = (Host::start(&file).await, Host::start(&file).await);
    let plant = |key: &str, owner_of: &str| {
        let mut connection = by_hand(&file);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        transaction.execute("UPDATE store SET epoch = epoch + 1", []).unwrap();
        let planted = transaction
            .execute(
                "INSERT INTO ownerships (key, incarnation, epoch, lock_delay_ms, inherited_ms)
                 SELECT ?1, o.incarnation, s.epoch, 0, 0 FROM ownerships o, store s WHERE o.key = ?2",
                [key, owner_of],
            )
            .unwrap();
        assert_eq!(planted, 1);
        let epoch: i64 = transaction.query_row("SELECT epoch FROM store", [], |row| row.get(0)).unwrap();
        transaction.commit().unwrap();
        Epoch(epoch.unsigned_abs())
    };
    a.take(&key("t/known"), Duration::ZERO).await;
    let ghost = plant("t/ghost", "t/known");
    // Nobody at its owner wants it, so it is given up and free for others.
    b.claim(&key("t/ghost"), Duration::ZERO);
    let gained = b.gained(&key("t/ghost")).await;
    assert!(gained.epoch > ghost && gained.quarantined_until <= gained.seen);
    assert_eq!(a.count(|event| matches!(event, Event::Gained { .. } | Event::Lost { .. })), 0);
    // Claimed by its owner: under a fresh epoch, since nobody knows what was granted under the old one.
    let ghost = plant("t/other", "t/known");
    assert!(a.take(&key("t/other"), Duration::ZERO).await.epoch > ghost);
}

#[tokio::test]
async fn the_dead_are_cleaned_up() {
    let file = file();
    let (mut a, mut b) = (Host::start(&file).await, Host::start(&file).await);
    for n in 0..600 {
        a.take(&key(&format!("t/{n}")), Duration::ZERO).await;
    }
    b.queue_for(&key("t/1"), Duration::ZERO).await;
    b.take(&key("t/b"), Duration::ZERO).await;
    a.queue_for(&key("t/b"), Duration::ZERO).await;
    a.kill().await;
    b.gained(&key("t/1")).await;
    let left = || {
        let sql = "SELECT (SELECT count(*) FROM incarnations), (SELECT count(*) FROM ownerships),
            (SELECT count(*) FROM queue)";
        by_hand(&file).query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap()
    };
    for _ in 0..50 {
        b.renewed().await;
        if left() == (1, 2, 0) {
            return;
        }
    }
    panic!("still there: {:?} incarnations, records and queue entries", left());
}

#[tokio::test]
async fn a_database_that_disappears_ends_the_lease_and_is_not_made_anew() {
    let file = file();
    let mut a = Host::start(&file).await;
    let epoch = a.take(&key("t/a"), Duration::ZERO).await.epoch;
    let (path, away) = (file.path(), file.directory.path().join("away.db"));
    std::fs::rename(&path, &away).unwrap();
    a.lease_lost().await;
    a.drain();
    tokio::time::sleep(LEASE_TTL * 3).await;
    assert!(!path.exists(), "a new database would start with low epochs");
    assert_eq!(a.count(|event| matches!(event, Event::LeaseRenewed { .. })), 0);
    // Its log is beside it under the old name, and belongs to it.
    std::fs::rename(&away, &path).unwrap();
    a.renewed().await;
    a.claim(&key("t/a"), Duration::ZERO);
    assert!(a.gained(&key("t/a")).await.epoch > epoch);
}

/// Puts the other file in the place of the one, with no log beside it.
async fn replace(file: &File, other: &File) {
    Host::start(other).await.end_lease().await;
    // All of it is in the one file once the last connection is closed.
    let settled = other.directory.path().join("settled.db");
    by_hand(other).execute("VACUUM INTO ?1", [settled.to_str().unwrap()]).unwrap();
    std::fs::rename(&settled, file.path()).unwrap();
    remove_log(file);
}

fn remove_log(file: &File) {
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", file.path().display()));
    }
}

/// Also by a host that has promised nothing itself: the other one's lock delay is known to it only from the lost file.
#[tokio::test]
async fn a_lost_file_is_waited_out_with_the_lock_delays_of_all_hosts() {
    let (file, other) = (file(), file());
    let delay = Duration::from_secs(2);
    let (mut a, mut b) = (Host::start(&file).await, Host::start(&file).await);
    a.take(&key("t/a"), delay).await;
    replace(&file, &other).await;
    let replaced = clock::now();
    let lease = a.kill().await;
    b.lease_lost().await;
    b.drain();
    b.renewed().await;
    let gained = b.take(&key("t/a"), Duration::ZERO).await;
    assert!(gained.seen >= lease + delay && gained.seen >= replaced + delay, "{gained:?} in the lease until {lease:?}");
}

/// Whoever opens the path now makes a new log, and sees nothing of what the old one's users write.
#[tokio::test]
async fn a_log_that_disappears_ends_the_lease() {
    for suffixes in [&["-wal", "-shm"][..], &["-wal"], &["-shm"]] {
        let file = file();
        let mut a = Host::start(&file).await;
        let delay = LEASE_TTL;
        let epoch = a.take(&key("t/a"), delay).await.epoch;
        a.renewed().await;
        for suffix in suffixes {
            std::fs::remove_file(format!("{}{suffix}", file.path().display())).unwrap();
        }
        let (removed, lease) = (clock::now(), a.leased_until);
        a.lease_lost().await;
        assert!(clock::now() < removed + LEASE_TTL * 2, "must be noticed with the next beat");
        a.drain();
        a.renewed().await;
        assert!(clock::now() >= lease + delay, "granted again before the old promises had passed");
        assert!(a.take(&key("t/a"), delay).await.epoch > epoch);
    }
}

#[tokio::test]
async fn a_database_replaced_by_another_gets_higher_epochs_after_a_wait() {
    let (file, other) = (file(), file());
    let mut a = Host::start(&file).await;
    let delay = LEASE_TTL;
    let mut epoch = Epoch(0);
    for _ in 0..5 {
        epoch = a.take(&key("t/a"), delay).await.epoch;
        a.give_up(&key("t/a"));
    }
    a.take(&key("t/a"), delay).await;
    let lease = a.leased_until;
    replace(&file, &other).await;
    a.lease_lost().await;
    a.drain();
    a.renewed().await;
    assert!(clock::now() >= lease + delay, "granted again before the old promises had passed");
    assert!(a.take(&key("t/a"), delay).await.epoch > epoch);
}

/// A disk that is full: beats and claims fail, nothing breaks, and it goes on when there is room again.
#[tokio::test]
async fn a_full_disk_is_survived() {
    let file = file();
    let mut a = Host::spawn(&file.limited()).await;
    a.report_failures();
    let mut n = 0;
    let full = loop {
        n += 1;
        a.claim(&key(&format!("t/{n}/{}", "x".repeat(400))), Duration::ZERO);
        let answer = |event: &Event| matches!(event, Event::Failed { .. } | Event::Gained { .. });
        if let Event::Failed { error, .. } = a.wait("an answer", answer).await {
            break error;
        }
        assert!(n < 20_000, "the disk never got full");
    };
    assert!(matches!(full, StoreError::Unavailable(_) | StoreError::Ambiguous(_)), "{full}");
    let death = a.kill().await;
    // Another host, for which there is room, takes over all that was acknowledged.
    let mut b = Host::start(&file).await;
    let first = key(&format!("t/1/{}", "x".repeat(400)));
    b.claim(&first, Duration::ZERO);
    let gained = b.gained(&first).await;
    assert!(gained.seen >= death);
    assert_eq!(by_hand(&file).query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
}
