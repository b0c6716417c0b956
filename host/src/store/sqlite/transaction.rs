//! Transactions: what guards each of them, and what its failure means.

use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use turnstile_core::Token;

use super::database::{Database, is_busy, read_store, wait_when_busy};
use super::liveness::Lease;

/// Why a transaction did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing was written.
    Unavailable(String),
    /// The commit failed, and may have landed.
    Ambiguous(String),
    /// Our incarnation is marked dead, or its row is gone.
    LeaseGone,
    /// This is not the file any more that it was, or it is damaged.
    Broken(String),
    /// All epochs were handed out.
    EpochsUsedUp,
}

/// Hands out epochs within one transaction.
pub(super) struct Epochs {
    last: u64,
}

impl Epochs {
    /// The next one; larger than every one before, in this file, for ever.
    pub(super) fn next(&mut self) -> Result<i64, Fault> {
        if self.last >= Token::EPOCH_MAX.0 {
            return Err(Fault::EpochsUsedUp);
        }
        self.last += 1;
        i64::try_from(self.last).map_err(|_| Fault::EpochsUsedUp)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
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
        work: impl FnOnce(&Connection, &mut Epochs) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.check_file()?;
        wait_when_busy(patience);
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let epoch_before = check_store(&transaction, &self.identity, self.epoch)?;
        if let Some(lease) = lease {
            lease.check(&transaction)?;
        }
        let mut epochs = Epochs { last: epoch_before };
        let done = work(&transaction, &mut epochs)?;
        let epoch = epochs.last;
        if epoch != epoch_before {
            transaction
                .prepare_cached("UPDATE store SET epoch = ?1")?
                .execute([i64::try_from(epoch).map_err(|_| Fault::EpochsUsedUp)?])?;
        }
        commit(transaction)?;
        self.epoch = epoch;
        Ok(done)
    }

    /// Runs `look` on one snapshot.
    pub(super) fn read<T>(&mut self, look: impl FnOnce(&Connection, u64) -> Result<T, Fault>) -> Result<T, Fault> {
        wait_when_busy(Duration::from_millis(50));
        let transaction = self.connection.transaction()?;
        let epoch = check_store(&transaction, &self.identity, self.epoch)?;
        let seen = look(&transaction, epoch)?;
        drop(transaction);
        self.epoch = epoch;
        Ok(seen)
    }

    /// A number that changes when another connection has committed. Nearly free.
    pub(super) fn data_version(&self) -> Result<i64, Fault> {
        wait_when_busy(Duration::from_millis(50));
        Ok(self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?)
    }
}

/// The epoch counter, if the file is still the one that we know. A restore puts back an older counter.
fn check_store(connection: &Connection, identity: &str, epoch_known: u64) -> Result<u64, Fault> {
    let (found, epoch) = match read_store(connection) {
        Err(rusqlite::Error::QueryReturnedNoRows) => return Err(Fault::Broken("its counter row is gone".to_owned())),
        other => other?,
    };
    if found != identity {
        return Err(Fault::Broken(format!("its identity was {identity} and is {found}")));
    }
    if epoch < epoch_known {
        return Err(Fault::Broken(format!("its epoch went back from {epoch_known} to {epoch}")));
    }
    Ok(epoch)
}

fn commit(transaction: Transaction<'_>) -> Result<(), Fault> {
    transaction.commit().map_err(|error| {
        let busy = is_busy(&error);
        match Fault::from(error) {
            // Any other failure may have left the commit in the log, where a recovery would find it.
            Fault::Unavailable(reason) if !busy => Fault::Ambiguous(reason),
            other => other,
        }
    })
}

impl Fault {
    /// The reason, for logs and for the driver.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Unavailable(reason) | Self::Ambiguous(reason) | Self::Broken(reason) => reason.clone(),
            Self::LeaseGone => "the lease was lost".to_owned(),
            Self::EpochsUsedUp => "all epochs of this store are used up".to_owned(),
        }
    }
}
