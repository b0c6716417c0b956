//! What comes of transactions: each key's part of an answer moves its job on.

use etcd_client::{TxnOpResponse, TxnResponse};
use turnstile_core::{Instant, LockKey};

use super::decide::Want;
use super::jobs::REFUSALS_MAX;
use super::link::{Fault, Meta, parse_meta};
use super::table::Entry;
use super::txn::{self, Foreign, Seen, Write, Written};
use super::worker::Worker;
use crate::clock;
use crate::store::StoreError;

/// A guard of a whole transaction that did not hold.
enum Guard {
    Lease,
    Meta(Meta),
}

impl Worker {
    pub(super) fn read_answered(
        &mut self,
        keys: Vec<LockKey>,
        response: Result<TxnResponse, Fault>,
        now: Instant,
    ) -> Result<(), Fault> {
        self.jobs.reads_flying = self.jobs.reads_flying.saturating_sub(1);
        let response = match response {
            Ok(response) => response,
            Err(fault) => {
                // Nothing was written.
                let fault = match fault {
                    Fault::Ambiguous(reason) => Fault::Unavailable(reason),
                    fault => fault,
                };
                keys.into_iter().for_each(|key| self.failed(key, &fault, now));
                return Err(fault);
            }
        };
        if !self.guards_held(&response, &keys, now)? {
            return Ok(());
        }
        let all = txn::all_seen(&self.layout, &keys, &response);
        for (key, seen) in keys.into_iter().zip(all) {
            match seen {
                Ok(seen) => self.saw(key, seen),
                Err(foreign) => self.reject(key, &foreign),
            }
        }
        Ok(())
    }

    pub(super) fn write_answered(
        &mut self,
        writes: Vec<(LockKey, Write)>,
        response: Result<TxnResponse, Fault>,
        now: Instant,
    ) -> Result<(), Fault> {
        self.jobs.writes_flying = self.jobs.writes_flying.saturating_sub(1);
        let response = match response {
            Ok(response) => response,
            Err(fault) => {
                writes.into_iter().for_each(|(key, _)| self.failed(key, &fault, now));
                return Err(fault);
            }
        };
        let keys: Vec<LockKey> = writes.iter().map(|(key, _)| key.clone()).collect();
        if !self.guards_held(&response, &keys, now)? {
            return Ok(());
        }
        let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
        let answers = response.op_responses().into_iter().filter_map(|answer| match answer {
            TxnOpResponse::Txn(answer) => Some(answer),
            _ => None,
        });
        for ((key, write), answer) in writes.into_iter().zip(answers) {
            match txn::written(&self.layout, &key, &answer) {
                Ok(Written::Landed(seen)) => self.landed(key, write, seen, revision),
                Ok(Written::Refused(seen)) => self.refused(key, write, seen, now),
                Err(foreign) => self.reject(key, &foreign),
            }
        }
        Ok(())
    }

    /// Whether the transaction as a whole was carried out. If the guards only need to be renewed, its keys are decided
    /// on again.
    fn guards_held(&mut self, response: &TxnResponse, keys: &[LockKey], now: Instant) -> Result<bool, Fault> {
        match self.broken_guard(response) {
            Ok(None) => return Ok(true),
            Ok(Some(Guard::Lease)) => return Err(Fault::LeaseGone),
            Ok(Some(Guard::Meta(meta))) => {
                self.learn(meta);
                self.jobs.decide_again(keys);
            }
            Err(fault) => {
                keys.iter().for_each(|key| self.failed(key.clone(), &fault, now));
                return Err(fault);
            }
        }
        Ok(false)
    }

    fn broken_guard(&self, response: &TxnResponse) -> Result<Option<Guard>, Fault> {
        if response.succeeded() {
            return Ok(None);
        }
        let mut answers = response.op_responses().into_iter();
        let (Some(TxnOpResponse::Get(host)), Some(TxnOpResponse::Get(meta))) = (answers.next(), answers.next()) else {
            return Err(Fault::Ambiguous("an answer that does not fit the question".into()));
        };
        let created = self.member().map(|member| member.me.created);
        if host.kvs().first().map(etcd_client::KeyValue::create_revision) != created {
            return Ok(Some(Guard::Lease));
        }
        let Some(kv) = meta.kvs().first() else {
            return Err(Fault::Unavailable(format!("{} is missing: somebody removed it", self.layout.meta())));
        };
        let epoch_base = parse_meta(&self.layout, kv)?.epoch_base;
        Ok(Some(Guard::Meta(Meta { epoch_base, revision: kv.mod_revision() })))
    }

    fn saw(&mut self, key: LockKey, seen: Seen) {
        if let Some(job) = self.jobs.by_key.get_mut(&key) {
            job.seen = Some(seen);
            self.jobs.ready.push_back(key);
        }
    }

    fn refused(&mut self, key: LockKey, write: Write, seen: Seen, now: Instant) {
        let Some(job) = self.jobs.by_key.get_mut(&key) else { return };
        (job.seen, job.refused) = (Some(seen), Some(write));
        job.refusals += 1;
        if job.refusals > REFUSALS_MAX {
            self.look_again(key, now);
        } else {
            self.jobs.ready.push_back(key);
        }
    }

    fn landed(&mut self, key: LockKey, write: Write, seen: Seen, revision: i64) {
        let rivals = seen.rivals(self.member().map_or("", |member| &member.me.name));
        let Some(job) = self.jobs.by_key.get_mut(&key) else { return };
        match write {
            Write::Create { record } => self.own(key, revision, record, Instant::default(), rivals),
            Write::TakeOver { record, until, .. } => self.own(key, revision, record, until, rivals),
            Write::Raise { record, .. } => {
                let until = match self.table.get(&key) {
                    Some(Entry::Owned(owned)) => owned.quarantined_until,
                    Some(Entry::Queued(_) | Entry::Unsure) | None => record.quarantine_from(clock::now()),
                };
                self.own(key, revision, record, until, rivals);
            }
            Write::Enqueue { place, .. } => {
                let want = std::mem::replace(&mut job.want, Want::Look);
                (job.seen, job.refused) = (Some(seen), None);
                let claim = match (want, self.table.get(&key)) {
                    (Want::Claim { claim, .. }, _) => Some(claim),
                    (_, Some(Entry::Queued(queued))) => Some(queued.claim),
                    _ => None,
                };
                if let Some(claim) = claim {
                    self.queue(&key, claim, place.lock_delay_ms, revision);
                }
                // The owner may have died since it was decided to queue.
                self.jobs.ready.push_back(key);
            }
            Write::Remove { .. } | Write::HandOver { .. } => {
                self.table.remove(&key);
                self.finish(&key);
            }
            Write::Leave => {
                job.seen = Some(seen);
                self.jobs.ready.push_back(key);
            }
        }
    }

    /// A request for this key was not answered.
    pub(super) fn failed(&mut self, key: LockKey, fault: &Fault, now: Instant) {
        let Some(want) = self.jobs.by_key.get(&key).map(|job| job.want) else { return };
        let claim = match want {
            Want::Claim { claim, .. } if !self.is_queued_as(&key, claim) => claim,
            // A claim that is queued has its answer: this was only a look whether its turn has come. The others get
            // through at last.
            Want::Claim { .. } | Want::Yield | Want::Look => {
                if let Some(job) = self.jobs.by_key.get_mut(&key)
                    && matches!(want, Want::Claim { .. })
                {
                    job.want = Want::Look;
                }
                return self.look_again(key, now);
            }
        };
        let error = match fault {
            Fault::Ambiguous(reason) => {
                if self.table.get(&key).is_none() {
                    self.table.set(key.clone(), Entry::Unsure);
                }
                StoreError::Ambiguous(reason.clone())
            }
            fault => StoreError::Unavailable(fault.to_string()),
        };
        self.fail(key, claim, error);
    }

    fn reject(&mut self, key: LockKey, foreign: &Foreign) {
        tracing::error!(store = "etcd", key = key.as_str(), %foreign, "somebody else writes under our prefix");
        match self.jobs.by_key.get(&key).map(|job| job.want) {
            Some(Want::Claim { claim, .. }) => self.fail(key, claim, StoreError::Rejected(foreign.to_string())),
            Some(Want::Yield) => {
                self.table.remove(&key);
                self.finish(&key);
            }
            Some(Want::Look) => self.finish(&key),
            None => {}
        }
    }
}
