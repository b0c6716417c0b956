//! The embedded store: one SQLite file, shared by the hosts of one machine.
//!
//! One thread owns the connection. It takes what was submitted, carries out all that waits in one transaction (group
//! commit, `synchronous=FULL`) and reports after the commit. Liveness is a counter in a row per incarnation: whoever
//! sees the counter of another unchanged for a full TTL *on its own monotonic clock* marks that one dead by
//! compare-and-swap on the counter, and a beat succeeds only while not marked. Nobody's wall clock is trusted; the only
//! wall time stored (`since_unix_s`) is for people.
//!
//! The file must lie on a local disk. SQLite's locks and its shared memory do not work over a network filesystem (NFS,
//! SMB, some container volumes), and that cannot be detected: two hosts would then corrupt the file.
//!
//! A host that is stopped (SIGSTOP, a debugger) in the middle of a commit keeps SQLite's write lock: until it goes on or
//! is killed, nobody can write, and every lease runs out. That is safe, and not to be helped in this store.
//!
//! Sources: <https://www.sqlite.org/wal.html>, <https://www.sqlite.org/howtocorrupt.html>.

mod batch;
mod database;
mod liveness;
mod notice;

mod records;
mod table;
mod transaction;
mod upkeep;
mod worker;
#[cfg(test)]
mod worker_tests;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use turnstile_core::Token;

use super::{Event, Operation, Store};
use database::Database;
use worker::Worker;

/// Where the database is, and how long a host's lease lives.
#[derive(Clone, Debug)]
pub struct Config {
    /// The database file; created if missing, its directory is not.
    pub path: PathBuf,
    /// A host that is silent for this long is taken for dead. At least [`SqliteStore::LEASE_TTL_MIN`].
    pub lease_ttl: Duration,
    /// Epochs start above this: lifts them over anything handed out by a store that was lost or restored.
    pub epoch_base: u64,
}

/// Why the database could not be opened, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum OpenError {
    #[error("the directory of {path} does not exist: create it, or correct the path")]
    NoDirectory { path: PathBuf },
    #[error("cannot open {path}: {reason}; check that it is a file this user may read and write")]
    CannotOpen { path: PathBuf, reason: String },
    #[error("{path} or its directory is not writable for this user: SQLite writes the file and two others beside it")]
    NotWritable { path: PathBuf },
    #[error("{path} is not a Turnstile database ({reason}): name another file, or move this one away")]
    NotOurs { path: PathBuf, reason: String },
    #[error(
        "{path} was written by a newer Turnstile (schema {found}, this build knows {known}): run that version or newer"
    )]
    NewerSchema { path: PathBuf, found: i64, known: i64 },
    #[error("{path} is damaged ({reason}): restore it, and set epoch_base above every epoch handed out")]
    Damaged { path: PathBuf, reason: String },
    #[error("{path} is locked by another process: {reason}; end that process, then try again")]
    Locked { path: PathBuf, reason: String },
    #[error("epoch_base {given} is out of range: at most {max}", max = Token::EPOCH_MAX.0)]
    EpochBase { given: u64 },
    #[error("lease_ttl {given:?} is out of range: from {min:?} to one day", min = SqliteStore::LEASE_TTL_MIN)]
    LeaseTtl { given: Duration },
    #[error("cannot start the store's thread: {0}")]
    NoThread(std::io::Error),
}

/// An open SQLite store. Dropping it is an abrupt death: the lease is not ended, it runs out.
pub struct SqliteStore {
    submitted: mpsc::Sender<Operation>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and the handle share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    commits: AtomicU64,
}

impl SqliteStore {
    /// The shortest lease: below it, ordinary hiccups of disk and scheduler would look like death.
    pub const LEASE_TTL_MIN: Duration = Duration::from_millis(100);

    /// Opens (or creates) the database and starts to keep a lease in it. Blocks for some milliseconds.
    ///
    /// # Errors
    /// See [`OpenError`]; each says what to do.
    pub fn open(config: Config, events: UnboundedSender<Event>) -> Result<Self, OpenError> {
        if config.epoch_base > Token::EPOCH_MAX.0 {
            return Err(OpenError::EpochBase { given: config.epoch_base });
        }
        if config.lease_ttl < Self::LEASE_TTL_MIN || config.lease_ttl > Duration::from_secs(86_400) {
            return Err(OpenError::LeaseTtl { given: config.lease_ttl });
        }
        let database = Database::open(&config.path, config.epoch_base)?;
        let (submitted, inbox) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let worker = Worker::new(config, database, inbox, events, Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("store-sqlite".to_owned())
            .spawn(move || worker.run())
            .map_err(OpenError::NoThread)?;
        Ok(Self { submitted, shared, thread: Some(thread) })
    }

    /// How many transactions were committed so far, beats included.
    pub fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }
}

impl Store for SqliteStore {
    fn submit(&self, operation: Operation) {
        // Fails only if the thread is gone, and then its events channel is closed too, which the driver sees.
        let _ = self.submitted.send(operation);
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the thread: the channel of a sender that is gone reports so at once.
        let (closed, _) = mpsc::channel();
        self.submitted = closed;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
