//! Carrying out what was submitted: many operations in one transaction, and what is reported of each.

use std::time::Duration;

use turnstile_core::{ClaimId, Instant, LockKey};

use super::liveness::millis_up;
use super::records::{self, Claimed, Known, Quarantine, Rivals, Wanted};
use super::table::{Entry, Owned, Queued, Table, Told};
use super::transaction::Fault;
use super::worker::{Phase, Worker};
use crate::clock;
use crate::store::{Event, Operation, StoreError};

/// Operations in one transaction: bounds how long a beat, or another host, has to wait for its end.
const BATCH_MAX: usize = 256;
/// Between two transactions while other hosts share the file: longer than they sleep between two tries for its lock,
/// which SQLite does not hand out in any order.
const COURTESY: Duration = Duration::from_micros(1_500);

/// What became of one operation of a batch.
enum Outcome {
    Claimed { key: LockKey, claim: ClaimId, claimed: Claimed },
    GivenUp { key: LockKey },
}

impl Worker {
    /// Answers what waits without carrying it out.
    pub(super) fn answer_all(&mut self, reason: &str, error: fn(String) -> StoreError) {
        for answer in self.pending.answers(|| error(reason.to_owned())) {
            if answer == Event::LeaseEnded {
                self.phase = Phase::Left;
            }
            self.report(answer);
        }
    }

    /// Carries out the operations that wait, as many as fit into one transaction, one per key.
    pub(super) fn run_batch(&mut self) {
        if self.pending.only_the_end() {
            self.end_lease();
            return;
        }
        let batch = self.take_batch();
        if batch.is_empty() {
            return;
        }
        let (patience, now) = (self.patience(), clock::now());
        let Self { phase: Phase::Member { database, lease }, table, .. } = self else { return };
        let done = database.write(patience, Some(lease), |connection, counters| {
            batch
                .iter()
                .filter_map(|operation| match operation {
                    Operation::Claim { key, claim, .. } => {
                        let wanted = wanted(table, operation, now)?;
                        let claimed = records::claim(connection, &lease.name, counters, &wanted);
                        Some(claimed.map(|claimed| Outcome::Claimed { key: key.clone(), claim: *claim, claimed }))
                    }
                    Operation::Yield { key } => {
                        let known = known(table.get(key));
                        let given_up = records::give_up(connection, &lease.name, counters, key.as_str(), known);
                        Some(given_up.map(|()| Outcome::GivenUp { key: key.clone() }))
                    }
                    Operation::EndLease => None,
                })
                .collect::<Result<Vec<_>, _>>()
        });
        match done {
            Ok(outcomes) => {
                self.committed();
                for (outcome, operation) in outcomes.into_iter().zip(batch) {
                    self.conclude(outcome, &operation);
                }
            }
            Err(fault) => self.batch_failed(batch, &fault),
        }
        if self.observer.has_company() {
            self.next_batch = self.next_batch.max(clock::now() + COURTESY);
        }
    }

    /// The next operations, without yields that have to wait for the end of a quarantine.
    fn take_batch(&mut self) -> Vec<Operation> {
        let now = clock::now();
        let mut batch = self.pending.take(BATCH_MAX);
        batch.retain(|operation| match operation {
            Operation::Yield { key } => !self.keep_for_quarantine(key, now),
            Operation::Claim { .. } | Operation::EndLease => true,
        });
        batch
    }

    fn conclude(&mut self, outcome: Outcome, operation: &Operation) {
        match outcome {
            Outcome::GivenUp { key } => drop(self.table.remove(&key)),
            Outcome::Claimed { key, claim, claimed: Claimed::Queued } => {
                let Operation::Claim { lock_delay, .. } = operation else { return };
                let again = self.is_queued_as(&key, claim);
                self.lose_before_answer(&key);
                self.table.set(key.clone(), Entry::Queued(Queued { claim, lock_delay: *lock_delay }));
                if !again {
                    self.report(Event::Queued { key, claim });
                }
            }
            Outcome::Claimed { key, claim, claimed: Claimed::Owned { epoch, lock_delay_ms, quarantine, rivals } } => {
                if matches!(quarantine, Quarantine::None | Quarantine::OfDead { .. }) {
                    self.lose_before_answer(&key);
                }
                let quarantined_until = self.quarantined_until(&key, &quarantine);
                let lock_delay = Duration::from_millis(lock_delay_ms.unsigned_abs());
                self.gained(
                    key,
                    claim,
                    rivals,
                    Owned { epoch, lock_delay, quarantined_until, claim: Some(claim), told: Told::Gained },
                );
            }
        }
    }

    /// The record of a key that we were claiming once more turned out to be no longer ours: whatever the driver does
    /// under it must end before it hears of the new claim.
    fn lose_before_answer(&mut self, key: &LockKey) {
        if let Some(Entry::Owned(owned)) = self.table.get(key) {
            tracing::error!(store = "sqlite", key = key.as_str(), "a record of ours was taken from us");
            if owned.told != Told::GivenUp {
                self.report(Event::Lost { key: key.clone() });
            }
        }
    }

    fn quarantined_until(&mut self, key: &LockKey, quarantine: &Quarantine) -> Instant {
        let now = clock::now();
        let delay = |delay_ms: i64| Duration::from_millis(delay_ms.unsigned_abs());
        match quarantine {
            Quarantine::None => Instant::default(),
            Quarantine::Unchanged => match self.table.get(key) {
                Some(Entry::Owned(owned)) => owned.quarantined_until,
                Some(Entry::Queued(_)) | None => Instant::default(),
            },
            Quarantine::OfDead { name, delay_ms } => self.observer.dead_since(name, now) + delay(*delay_ms),
            Quarantine::FromNow { delay_ms } if *delay_ms == 0 => Instant::default(),
            Quarantine::FromNow { delay_ms } => now + delay(*delay_ms),
        }
    }

    /// Takes down that the key is ours, and tells the driver.
    pub(super) fn gained(&mut self, key: LockKey, claim: ClaimId, rivals: Rivals, owned: Owned) {
        tracing::debug!(store = "sqlite", key = key.as_str(), epoch = owned.epoch, "owned");
        self.report(Event::Gained {
            key: key.clone(),
            claim,
            epoch: turnstile_core::Epoch(owned.epoch),
            lock_delay: owned.lock_delay,
            quarantined_until: owned.quarantined_until,
        });
        // Again with each answer: the driver may have begun anew with this one.
        let told = match rivals {
            Rivals::Waiting => {
                self.report(Event::Contended { key: key.clone() });
                Told::Contended
            }
            Rivals::None => Told::Gained,
        };
        self.table.set(key, Entry::Owned(Owned { claim: Some(claim), told, ..owned }));
    }

    fn batch_failed(&mut self, batch: Vec<Operation>, fault: &Fault) {
        for operation in batch {
            match operation {
                // Only a look whether its turn has come; another will follow.
                Operation::Claim { ref key, claim, .. } if self.is_queued_as(key, claim) => {}
                Operation::Claim { key, claim, .. } => {
                    let error = match fault {
                        Fault::Ambiguous(reason) => StoreError::Ambiguous(reason.clone()),
                        Fault::EpochsUsedUp => StoreError::Rejected(fault.reason()),
                        _ => StoreError::Unavailable(fault.reason()),
                    };
                    self.report(Event::Failed { key, claim, error });
                }
                // Gets through at last, and whatever waits behind it is answered meanwhile.
                Operation::Yield { ref key } => {
                    if matches!(fault, Fault::Ambiguous(_)) {
                        self.table.remove(key);
                    }
                    self.pending.put_back(operation);
                }
                Operation::EndLease => {}
            }
        }
        self.next_batch = clock::now() + self.config.lease_ttl / 100;
        self.handle(fault);
    }

    fn is_queued_as(&self, key: &LockKey, claim: ClaimId) -> bool {
        matches!(self.table.get(key), Some(Entry::Queued(queued)) if queued.claim == claim)
    }
}

/// What the table knows about the key, as the transaction wants it.
fn wanted<'a>(table: &Table, operation: &'a Operation, now: Instant) -> Option<Wanted<'a>> {
    let Operation::Claim { key, claim, lock_delay, new_epoch } = operation else { return None };
    let entry = table.get(key);
    // Whoever claims what it was given already may have forgotten that, and with it how many tokens it has handed out.
    let fresh = match entry {
        Some(Entry::Owned(owned)) => owned.told == Told::GivenUp || owned.claim != Some(*claim),
        Some(Entry::Queued(_)) | None => false,
    };
    let waited_out = matches!(entry, Some(Entry::Owned(owned)) if owned.quarantined_until <= now);
    let (lock_delay_ms, new_epoch) = (millis_up(*lock_delay), *new_epoch || fresh);
    Some(Wanted { key, lock_delay_ms, new_epoch, known: known(entry), waited_out })
}

fn known(entry: Option<&Entry>) -> Known {
    match entry {
        None => Known::Nothing,
        Some(Entry::Queued(_)) => Known::Queued,
        Some(Entry::Owned(owned)) => Known::Owned(i64::try_from(owned.epoch).unwrap_or(i64::MAX)),
    }
}
