//! The file: opening it, its schema, and noticing that it is not the same file any more.

use std::cell::Cell;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::OpenError;
use super::transaction::Fault;

const SCHEMA_VERSION: i64 = 1;
/// "TURN": tells our files from those of other programs.
const APPLICATION_ID: i64 = 0x5455_524e;
const OPEN_PATIENCE: Duration = Duration::from_secs(5);
/// How far epochs are lifted over the last one known when the file under us turned into another one: other hosts may
/// have been given some since we last looked.
const EPOCH_LEAP: u64 = 1 << 20;

const SCHEMA: &str = "
CREATE TABLE store (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    identity TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    lock_delay_ms INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE incarnations (
    name TEXT PRIMARY KEY,
    beat INTEGER NOT NULL,
    ttl_ms INTEGER NOT NULL,
    dead INTEGER NOT NULL DEFAULT 0,
    since_unix_s INTEGER NOT NULL DEFAULT (unixepoch())
) STRICT, WITHOUT ROWID;
CREATE TABLE ownerships (
    key TEXT PRIMARY KEY,
    incarnation TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    lock_delay_ms INTEGER NOT NULL,
    inherited_ms INTEGER NOT NULL,
    since_unix_s INTEGER NOT NULL DEFAULT (unixepoch())
) STRICT, WITHOUT ROWID;
CREATE INDEX ownerships_by_incarnation ON ownerships (incarnation, epoch);
CREATE TABLE queue (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    lock_delay_ms INTEGER NOT NULL,
    UNIQUE (key, incarnation)
) STRICT;
CREATE INDEX queue_by_incarnation ON queue (incarnation);
";

/// An open database file, known to be ours.
pub(super) struct Database {
    pub(super) connection: Connection,
    files: Files,
    pub(super) marks: Marks,
}

/// What tells one file, and one state of it, from another. Nothing in it goes back in one and the same file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    /// The random name that the file got when it was created.
    pub(super) identity: String,
    /// The highest epoch handed out.
    pub(super) epoch: u64,
    /// The largest lock delay that any host ever promised.
    pub(super) lock_delay_ms: i64,
}

impl Marks {
    /// With the numbers that are higher in `other`.
    pub(super) fn raised_to(self, other: &Self) -> Self {
        Self {
            identity: self.identity,
            epoch: self.epoch.max(other.epoch),
            lock_delay_ms: self.lock_delay_ms.max(other.lock_delay_ms),
        }
    }
}

/// The files under the path: the database, its log, and the shared memory in which its locks are. Whoever opens the
/// path while one of them is missing makes a new one, and then sees nothing of those who have the old one open.
struct Files([(PathBuf, Inode); 3]);

#[derive(Clone, Copy, PartialEq, Eq)]
struct Inode {
    device: u64,
    number: u64,
}

impl Database {
    /// Opens the file, creating it if there is none.
    pub(super) fn open(path: &Path, epoch_base: u64) -> Result<Self, OpenError> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !directory.is_dir() {
            return Err(OpenError::NoDirectory { path: path.to_owned() });
        }
        let connection = connect(path, OpenFlags::SQLITE_OPEN_CREATE)?;
        Self::prepare(connection, path, epoch_base, Create::IfEmpty)
    }

    /// Opens a file that must be there, after the one before was lost under us. A file that is another one, or older,
    /// is taken only with its epochs lifted over every one we know of.
    pub(super) fn reopen(path: &Path, epoch_base: u64, last: &Marks) -> Result<Self, OpenError> {
        let connection = connect(path, OpenFlags::empty())?;
        let mut database = Self::prepare(connection, path, epoch_base, Create::Never)?;
        let health = database.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
        match health {
            Ok(health) if health == "ok" => {}
            Ok(reason) => return Err(OpenError::Damaged { path: path.to_owned(), reason }),
            Err(error) => return Err(explain(path, &error)),
        }
        if database.marks.identity != last.identity || database.marks.epoch < last.epoch {
            let lifted = last.epoch.saturating_add(EPOCH_LEAP).max(database.marks.epoch);
            tracing::error!(
                store = "sqlite", path = %path.display(), found_epoch = database.marks.epoch, known_epoch = last.epoch,
                lifted_to = lifted,
                "the database was replaced by another or an older one; epochs are lifted, but other hosts may have \
                 handed out higher ones: set epoch_base above every epoch handed out"
            );
            database.lift(lifted).map_err(|error| explain(path, &error))?;
        }
        Ok(database)
    }

    fn prepare(mut connection: Connection, path: &Path, epoch_base: u64, create: Create) -> Result<Self, OpenError> {
        let before = Inode::of(path);
        set_up(&mut connection, path, create)?;
        let marks = read_store(&connection).map_err(|error| explain(path, &error))?;
        // All three are there once something was read, and stay as long as the connection is open.
        let files = Files::of(path).filter(|files| before.is_some() && files.main() == before);
        let Some(files) = files else {
            return Err(OpenError::CannotOpen { path: path.to_owned(), reason: "the file changed meanwhile".into() });
        };
        let mut database = Self { connection, files, marks };
        // Also proves that we may write.
        database.lift(epoch_base).map_err(|error| explain(path, &error))?;
        Ok(database)
    }

    fn lift(&mut self, epoch: u64) -> rusqlite::Result<()> {
        wait_when_busy(OPEN_PATIENCE);
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute("UPDATE store SET epoch = max(epoch, ?1)", [i64::try_from(epoch).unwrap_or(i64::MAX)])?;
        let marks = read_store(&transaction)?;
        transaction.commit()?;
        self.marks = marks;
        Ok(())
    }

    /// Whether the path still leads to the files that are open. SQLite itself goes on in deleted files without a word.
    pub(super) fn check_files(&self) -> Result<(), Fault> {
        let Files(files) = &self.files;
        match files.iter().find(|(path, inode)| Inode::of(path) != Some(*inode)) {
            None => Ok(()),
            Some((path, _)) => Err(Fault::Broken(format!("{} was deleted or replaced", path.display()))),
        }
    }

    /// The marks of a file that is lost. It may still be open, and others may have written since we last looked.
    pub(super) fn last_marks(self) -> Marks {
        wait_when_busy(Duration::ZERO);
        match read_store(&self.connection) {
            Ok(last) if last.identity == self.marks.identity => self.marks.raised_to(&last),
            _ => self.marks,
        }
    }
}

/// Reads the marks of the file.
pub(super) fn read_store(connection: &Connection) -> rusqlite::Result<Marks> {
    let mut statement = connection.prepare_cached("SELECT identity, epoch, lock_delay_ms FROM store WHERE one = 1")?;
    statement.query_row([], |row| {
        let epoch: i64 = row.get(1)?;
        Ok(Marks { identity: row.get(0)?, epoch: epoch.unsigned_abs(), lock_delay_ms: row.get(2)? })
    })
}

/// 128 random bits as text.
pub(super) fn random_name() -> Result<String, getrandom::Error> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Create {
    IfEmpty,
    Never,
}

fn connect(path: &Path, create: OpenFlags) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | create;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| explain(path, &error))?;
    // With `SQLITE_OPEN_READ_WRITE`, SQLite falls back to reading only.
    if connection.is_readonly("main").unwrap_or(false) {
        return Err(OpenError::NotWritable { path: path.to_owned() });
    }
    Ok(connection)
}

fn set_up(connection: &mut Connection, path: &Path, create: Create) -> Result<(), OpenError> {
    let sql = |error: rusqlite::Error| explain(path, &error);
    connection.busy_handler(Some(wait_a_little)).map_err(sql)?;
    connection.set_prepared_statement_cache_capacity(64);
    wait_when_busy(OPEN_PATIENCE);
    // Changing the journal mode needs the file alone, and does not ask the busy handler.
    let patience = Instant::now() + OPEN_PATIENCE;
    loop {
        match connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0)) {
            Ok(mode) if mode == "wal" => break,
            Ok(mode) => {
                let reason = format!("journal mode is {mode}, WAL needs shared memory beside the file");
                return Err(OpenError::CannotOpen { path: path.to_owned(), reason });
            }
            Err(error) if is_busy(&error) && Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(sql(error)),
        }
    }
    for pragma in [
        "PRAGMA synchronous = FULL",
        "PRAGMA trusted_schema = OFF",
        // Lets the write-ahead log shrink again after a burst.
        "PRAGMA journal_size_limit = 67108864",
    ] {
        connection.execute_batch(pragma).map_err(sql)?;
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    let read = |pragma: &str| transaction.query_row(pragma, [], |row| row.get::<_, i64>(0)).map_err(sql);
    let (application, version) = (read("PRAGMA application_id")?, read("PRAGMA user_version")?);
    let tables = read("SELECT count(*) FROM sqlite_schema")?;
    match (application, version) {
        (APPLICATION_ID, SCHEMA_VERSION) => return Ok(()),
        (APPLICATION_ID, found) if found > SCHEMA_VERSION => {
            return Err(OpenError::NewerSchema { path: path.to_owned(), found, known: SCHEMA_VERSION });
        }
        (0, 0) if tables == 0 && create == Create::IfEmpty => {}
        _ => {
            let reason = format!("application id {application}, schema {version}, {tables} tables");
            return Err(OpenError::NotOurs { path: path.to_owned(), reason });
        }
    }
    let identity = random_name()
        .map_err(|error| OpenError::CannotOpen { path: path.to_owned(), reason: format!("no randomness: {error}") })?;
    transaction.execute_batch(SCHEMA).map_err(sql)?;
    transaction.execute("INSERT INTO store (one, identity, epoch) VALUES (1, ?1, 0)", [&identity]).map_err(sql)?;
    transaction
        .execute_batch(&format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"))
        .map_err(sql)?;
    transaction.commit().map_err(sql)?;
    tracing::info!(store = "sqlite", path = %path.display(), identity, "created a new database");
    Ok(())
}

fn explain(path: &Path, error: &rusqlite::Error) -> OpenError {
    let (path, reason) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::NotOurs { path, reason },
        Some(ErrorCode::ReadOnly) => OpenError::NotWritable { path },
        Some(ErrorCode::DatabaseCorrupt) => OpenError::Damaged { path, reason },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::Locked { path, reason },
        _ => OpenError::CannotOpen { path, reason },
    }
}

pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

impl Files {
    fn of(path: &Path) -> Option<Self> {
        // SQLite puts the other two beside the file that a link leads to.
        let real = path.canonicalize().ok()?;
        let beside = |suffix: &str| {
            let mut name = real.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        };
        let [log, memory] = [beside("-wal"), beside("-shm")];
        let inodes = (Inode::of(path)?, Inode::of(&log)?, Inode::of(&memory)?);
        Some(Self([(path.to_owned(), inodes.0), (log, inodes.1), (memory, inodes.2)]))
    }

    fn main(&self) -> Option<Inode> {
        self.0.first().map(|(_, inode)| *inode)
    }
}

impl Inode {
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self { device: metadata.dev(), number: metadata.ino() })
    }
}

thread_local! {
    static BUSY_UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// From now on, a lock of another process is waited for on this thread for at most `patience` in total.
pub(super) fn wait_when_busy(patience: Duration) {
    BUSY_UNTIL.set(Instant::now().checked_add(patience));
}

/// SQLite's own handler sleeps for up to 100 ms, in which a lock that is free for a millisecond is never met.
fn wait_a_little(tries: i32) -> bool {
    if BUSY_UNTIL.get().is_none_or(|until| Instant::now() >= until) {
        return false;
    }
    std::thread::sleep(if tries < 5 { Duration::from_micros(200) } else { Duration::from_micros(500) });
    true
}
