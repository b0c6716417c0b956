//! Transactions: what guards each of them, and what its failure means.

use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior, params};
use turnstile_core::Token;

use super::database::{Database, Marks, is_busy, read_store, wait_when_busy};
use super::liveness::Lease;

/// Why a transaction did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing was written.
    Unavailable(String),
    /// Nothing was written: another process had the file locked.
    Busy(String),
    /// The commit failed, and may have landed.
    Ambiguous(String),
    /// Our incarnation is marked dead, or its row is gone.
    LeaseGone,
    /// This is not the file any more that it was, or it is damaged.
    Broken(String),
    /// All epochs were handed out.
    EpochsUsedUp,
}

/// What only grows in a file, within one transaction.
pub(super) struct Counters {
    epoch: u64,
    lock_delay_ms: i64,
}

impl Counters {
    /// The next epoch; larger than every one before, in this file, for ever.
    pub(super) fn next_epoch(&mut self) -> Result<i64, Fault> {
        if self.epoch >= Token::EPOCH_MAX.0 {
            return Err(Fault::EpochsUsedUp);
        }
        self.epoch += 1;
        i64::try_from(self.epoch).map_err(|_| Fault::EpochsUsedUp)
    }

    /// A lock delay of this length may have to be waited out by hosts that know nothing but the file.
    pub(super) fn promise(&mut self, lock_delay_ms: i64) {
        self.lock_delay_ms = self.lock_delay_ms.max(lock_delay_ms);
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(_) if is_busy(&error) => Self::Busy(error.to_string()),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Broken(error.to_string()),
            Some(_) => Self::Unavailable(error.to_string()),
            // Not from SQLite but from reading its answer: a row that we did not write like that.
            None => Self::Broken(error.to_string()),
        }
    }
}

impl Database {
    /// Runs `work` in a write transaction of a live incarnation. `patience` is how long locks of others are waited for.
    pub(super) fn write<T>(
        &mut self,
        patience: Duration,
        lease: Option<&Lease>,
        work: impl FnOnce(&Connection, &mut Counters) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.check_files()?;
        wait_when_busy(patience);
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut marks = check_store(&transaction, &self.marks)?;
        if let Some(lease) = lease {
            lease.check(&transaction)?;
        }
        let mut counters = Counters { epoch: marks.epoch, lock_delay_ms: marks.lock_delay_ms };
        let done = work(&transaction, &mut counters)?;
        let Counters { epoch, lock_delay_ms } = counters;
        if (epoch, lock_delay_ms) != (marks.epoch, marks.lock_delay_ms) {
            transaction
                .prepare_cached("UPDATE store SET epoch = ?1, lock_delay_ms = ?2")?
                .execute(params![i64::try_from(epoch).map_err(|_| Fault::EpochsUsedUp)?, lock_delay_ms])?;
            (marks.epoch, marks.lock_delay_ms) = (epoch, lock_delay_ms);
        }
        commit(transaction)?;
        self.marks = marks;
        Ok(done)
    }

    /// Runs `look` on one snapshot.
    pub(super) fn read<T>(&mut self, look: impl FnOnce(&Connection, u64) -> Result<T, Fault>) -> Result<T, Fault> {
        wait_when_busy(Duration::from_millis(50));
        let transaction = self.connection.transaction()?;
        let marks = check_store(&transaction, &self.marks)?;
        let seen = look(&transaction, marks.epoch)?;
        drop(transaction);
        self.marks = marks;
        Ok(seen)
    }

    /// A number that changes when another connection has committed. Nearly free.
    pub(super) fn data_version(&self) -> Result<i64, Fault> {
        wait_when_busy(Duration::from_millis(50));
        Ok(self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?)
    }
}

/// The marks, if the file is still the one that we know. A restore puts back older ones.
fn check_store(connection: &Connection, known: &Marks) -> Result<Marks, Fault> {
    let found = match read_store(connection) {
        Err(rusqlite::Error::QueryReturnedNoRows) => return Err(Fault::Broken("its counter row is gone".to_owned())),
        other => other?,
    };
    if found.identity != known.identity {
        return Err(Fault::Broken(format!("its identity was {} and is {}", known.identity, found.identity)));
    }
    if found.epoch < known.epoch {
        return Err(Fault::Broken(format!("its epoch went back from {} to {}", known.epoch, found.epoch)));
    }
    if found.lock_delay_ms < known.lock_delay_ms {
        return Err(Fault::Broken("its largest lock delay went back".to_owned()));
    }
    Ok(found)
}

fn commit(transaction: Transaction<'_>) -> Result<(), Fault> {
    let committed = transaction.commit();
    #[cfg(test)]
    let committed = faults::apply(committed);
    committed.map_err(|error| match Fault::from(error) {
        // May have left the commit in the log, where a recovery would find it.
        Fault::Unavailable(reason) => Fault::Ambiguous(reason),
        other => other,
    })
}

impl Fault {
    /// The reason, for logs and for the driver.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Unavailable(reason) | Self::Busy(reason) | Self::Ambiguous(reason) | Self::Broken(reason) => {
                reason.clone()
            }
            Self::LeaseGone => "the lease was lost".to_owned(),
            Self::EpochsUsedUp => "all epochs of this store are used up".to_owned(),
        }
    }
}

/// Lets a test have commits that land and yet fail.
#[cfg(test)]
pub(super) mod faults {
    use std::cell::Cell;

    thread_local! {
        static NEXT_COMMIT_FAILS: Cell<bool> = const { Cell::new(false) };
    }

    pub(in super::super) fn fail_next_commit() {
        NEXT_COMMIT_FAILS.set(true);
    }

    pub(super) fn apply(committed: rusqlite::Result<()>) -> rusqlite::Result<()> {
        if !NEXT_COMMIT_FAILS.replace(false) {
            return committed;
        }
        Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC), None))
    }
}
