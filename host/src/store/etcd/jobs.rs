//! What is being done about keys: decided one by one, sent many at a time, concluded when the answer comes.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use etcd_client::{TxnOpResponse, TxnResponse};
use turnstile_core::{ClaimId, Epoch, Instant, LockKey, Token};

use super::decide::{Circumstances, Step, Want};
use super::layout::RecordValue;
use super::link::{Fault, Meta, parse_meta};
use super::table::{Entry, Owned, Queued, Told};
use super::txn::{self, Foreign, READ_MAX, Seen, Write, Written};
use super::worker::{What, Worker, unix_s};
use crate::clock;
use crate::store::{Event, Operation, StoreError};

/// Keys in one transaction that writes: with the wakes, less than the 128 operations that etcd takes.
const WRITE_MAX: usize = 64;
/// Transactions under way at once, of each kind: more would only make each smaller.
const FLIGHTS_MAX: usize = 2;
/// Operations that are taken up before others are done.
const JOBS_MAX: usize = 1_024;
/// Queued keys that are looked at once a TTL, in turns, in case a wake was lost.
const ROUND_MAX: usize = 500;
/// Before something is tried again that cannot go on.
const PAUSE: Duration = Duration::from_millis(50);
/// Refusals in a row after which a key gets such a pause.
const REFUSALS_MAX: u32 = 8;

/// What is being done about one key.
#[derive(Debug)]
struct Job {
    want: Want,
    seen: Option<Seen>,
    refused: Option<Write>,
    refusals: u32,
    /// Somebody asked us to look at the key meanwhile.
    woken: bool,
}

/// Everything that is being done.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    by_key: HashMap<LockKey, Job>,
    ready: VecDeque<LockKey>,
    to_write: VecDeque<(LockKey, Write)>,
    to_read: VecDeque<LockKey>,
    paused: Vec<LockKey>,
    retry_at: Option<Instant>,
    writes_flying: usize,
    reads_flying: usize,
    /// The last round over queued keys came to here.
    round: Option<LockKey>,
}

impl Jobs {
    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    pub(super) fn has(&self, key: &LockKey) -> bool {
        self.by_key.contains_key(key)
    }

    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    pub(super) fn retry_now(&mut self) {
        self.retry_at = None;
        self.ready.extend(self.paused.drain(..));
    }

    /// Claims that have no answer yet.
    pub(super) fn claims(self) -> impl Iterator<Item = (LockKey, ClaimId)> {
        self.by_key.into_iter().filter_map(|(key, job)| match job.want {
            Want::Claim { claim, .. } => Some((key, claim)),
            Want::Yield | Want::Look => None,
        })
    }

    fn pause(&mut self, key: LockKey, now: Instant) {
        self.paused.push(key);
        self.retry_at.get_or_insert(now + PAUSE);
    }
}

/// A guard of a whole transaction that did not hold.
enum Guard {
    Lease,
    Meta(Meta),
}

impl Worker {
    /// Takes up what was submitted, decides, and sends as much as may be under way.
    pub(super) fn pump(&mut self, now: Instant) {
        if self.link().is_none() {
            return;
        }
        if self.jobs.retry_at.is_some_and(|at| at <= now) {
            self.jobs.retry_now();
        }
        let room = JOBS_MAX.saturating_sub(self.jobs.by_key.len());
        for operation in self.pending.take_unless(room, |key| self.jobs.by_key.contains_key(key)) {
            match operation {
                Operation::Claim { key, claim, lock_delay, new_epoch } => {
                    let lock_delay_ms = super::decide::millis_up(lock_delay);
                    self.promised(lock_delay_ms);
                    self.start(key, Want::Claim { claim, lock_delay_ms, new_epoch });
                }
                Operation::Yield { key } => {
                    if !self.keep_for_quarantine(&key, now) {
                        self.start(key, Want::Yield);
                    }
                }
                Operation::EndLease => {}
            }
        }
        while let Some(key) = self.jobs.ready.pop_front() {
            self.decide(key, now);
        }
        self.send_writes();
        self.send_reads();
    }

    /// Begins to do something about a key, unless something is done about it already.
    pub(super) fn start(&mut self, key: LockKey, want: Want) {
        if self.jobs.by_key.contains_key(&key) {
            return;
        }
        let job = Job { want, seen: None, refused: None, refusals: 0, woken: false };
        self.jobs.by_key.insert(key.clone(), job);
        self.jobs.ready.push_back(key);
    }

    /// Somebody wants us to look at these keys.
    pub(super) fn wake(&mut self, keys: Vec<LockKey>) {
        for key in keys {
            if let Some(job) = self.jobs.by_key.get_mut(&key) {
                job.woken = true;
                continue;
            }
            match self.table.get(&key) {
                Some(Entry::Owned(_)) => {
                    if self.table.contend(&key) {
                        self.report(Event::Contended { key });
                    }
                }
                Some(Entry::Queued(_)) => self.start(key, Want::Look),
                Some(Entry::Unsure) | None => self.give_back(key),
            }
        }
    }

    /// There may be a record, or a place, that the table does not know: a write landed that was given up long ago.
    pub(super) fn give_back(&mut self, key: LockKey) {
        self.table.set(key.clone(), Entry::Unsure);
        self.start(key, Want::Yield);
    }

    /// Somebody died: whose turn is it now?
    pub(super) fn look_at_all_queued(&mut self) {
        let keys: Vec<LockKey> = self.table.queued().cloned().collect();
        keys.into_iter().for_each(|key| self.start(key, Want::Look));
    }

    /// Looks at some queued keys, the next ones each time.
    pub(super) fn look_at_some_queued(&mut self) {
        let after = self.jobs.round.take();
        let keys = self.table.queued_after(after.as_ref(), ROUND_MAX);
        self.jobs.round = keys.last().filter(|_| keys.len() == ROUND_MAX).cloned();
        keys.into_iter().for_each(|key| self.start(key, Want::Look));
    }

    /// Gives up records whose quarantine has passed and which nobody here wants.
    pub(super) fn give_up_due(&mut self, now: Instant) {
        while let Some(key) = self.table.pop_given_up(now) {
            self.start(key, Want::Yield);
        }
    }

    /// Whether a yield has to wait: the record is in a dead predecessor's quarantine, which must not be forgotten with
    /// it. If so, the table remembers to give it up afterwards.
    fn keep_for_quarantine(&mut self, key: &LockKey, now: Instant) -> bool {
        match self.table.get(key) {
            Some(Entry::Owned(owned)) if owned.quarantined_until > now => {
                let owned = Owned { told: Told::GivenUp, ..owned.clone() };
                self.table.set(key.clone(), Entry::Owned(owned));
                true
            }
            _ => false,
        }
    }

    /// Answers claims that are not under way: there is no connection.
    pub(super) fn fail_claims(&mut self, reason: &str) {
        let waiting = std::mem::take(&mut self.jobs.paused).into_iter().chain(std::mem::take(&mut self.jobs.ready));
        let waiting = waiting.chain(std::mem::take(&mut self.jobs.to_write).into_iter().map(|(key, _)| key));
        let waiting: Vec<LockKey> = waiting.chain(std::mem::take(&mut self.jobs.to_read)).collect();
        for key in waiting {
            match self.jobs.by_key.get(&key).map(|job| job.want) {
                Some(Want::Claim { claim, .. }) => {
                    self.fail(key, claim, StoreError::Unavailable(reason.to_owned()));
                }
                Some(Want::Yield | Want::Look) => self.jobs.ready.push_back(key),
                None => {}
            }
        }
        for operation in self.pending.take_claims() {
            if let Operation::Claim { key, claim, .. } = operation {
                self.report(Event::Failed { key, claim, error: StoreError::Unavailable(reason.to_owned()) });
            }
        }
    }

    fn fail(&mut self, key: LockKey, claim: ClaimId, error: StoreError) {
        self.finish(&key);
        self.report(Event::Failed { key, claim, error });
    }

    // Deciding.

    fn decide(&mut self, key: LockKey, now: Instant) {
        let Some(member) = self.member() else { return };
        let circumstances = Circumstances {
            me: &member.me.name,
            ttl: self.config.lease_ttl,
            hosts: &self.hosts,
            now,
            leased_until: member.leased_until,
            unix_s: unix_s(),
        };
        let Some(job) = self.jobs.by_key.get(&key) else { return };
        match circumstances.step(job.want, self.table.get(&key), job.seen.as_ref()) {
            Step::Write(write) => {
                if job.refused.as_ref().is_some_and(|refused| refused.is_as(&write)) {
                    // The cluster knows a host that the watch did not tell of, yet.
                    self.relist();
                    self.look_again(key, now);
                } else {
                    self.jobs.to_write.push_back((key, write));
                }
            }
            Step::Read => self.jobs.to_read.push_back(key),
            Step::Unbelieving => self.look_again(key, now),
            step => self.conclude(key, step),
        }
    }

    /// After a pause, from what is there then.
    fn look_again(&mut self, key: LockKey, now: Instant) {
        if let Some(job) = self.jobs.by_key.get_mut(&key) {
            (job.seen, job.refused, job.refusals) = (None, None, 0);
            self.jobs.pause(key, now);
        }
    }

    /// The job is done, or goes on as another.
    fn conclude(&mut self, key: LockKey, step: Step) {
        let Some(job) = self.jobs.by_key.get_mut(&key) else { return };
        let want = job.want;
        match step {
            Step::Gained { record, quarantined_until } => {
                let rivals = job.seen.as_ref().is_some_and(|seen| !seen.queue.is_empty());
                self.own(key, record.revision, record.value, quarantined_until, rivals);
            }
            Step::Queued => {
                if let Want::Claim { claim, lock_delay_ms, .. } = want {
                    self.queue(&key, claim, lock_delay_ms);
                }
                self.finish(&key);
            }
            Step::Kept { revision, rivals } => {
                if let Some(Entry::Owned(owned)) = self.table.get(&key) {
                    let owned = Owned { revision, ..owned.clone() };
                    self.table.set(key.clone(), Entry::Owned(owned));
                }
                self.finish(&key);
                if rivals && self.table.contend(&key) {
                    self.report(Event::Contended { key });
                }
            }
            Step::Lost => {
                tracing::error!(store = "etcd", key = key.as_str(), "a record of ours was taken from us");
                let told = matches!(self.table.remove(&key), Some(Entry::Owned(owned)) if owned.told != Told::GivenUp);
                if told {
                    // Whatever the driver does under it must end before it hears of a new claim.
                    self.report(Event::Lost { key: key.clone() });
                }
                match want {
                    Want::Claim { .. } => self.jobs.ready.push_back(key),
                    Want::Yield | Want::Look => self.finish(&key),
                }
            }
            Step::KeptForQuarantine { record, quarantined_until } => {
                let owned = self.owned(record.revision, &record.value, quarantined_until, Told::GivenUp);
                self.table.set(key.clone(), Entry::Owned(owned));
                self.finish(&key);
            }
            Step::Nothing => {
                if !matches!(want, Want::Look) {
                    self.table.remove(&key);
                }
                self.finish(&key);
            }
            Step::Write(_) | Step::Read | Step::Unbelieving => {}
        }
    }

    /// Takes down that the key is ours, and tells the driver; ends the job.
    fn own(&mut self, key: LockKey, revision: i64, value: RecordValue, quarantined_until: Instant, rivals: bool) {
        let want = self.jobs.by_key.get(&key).map(|job| job.want);
        let claim = match (want, self.table.get(&key)) {
            (Some(Want::Claim { claim, .. }), _) => claim,
            (_, Some(Entry::Queued(queued))) => queued.claim,
            // Only what is claimed, or waited for, is gained.
            _ => return self.finish(&key),
        };
        let base = self.member().map_or(0, |member| member.meta.epoch_base);
        let epoch = Epoch(base.saturating_add(revision.unsigned_abs()));
        self.promised(value.lock_delay_ms);
        let lock_delay = Duration::from_millis(value.lock_delay_ms);
        if epoch > Token::EPOCH_MAX {
            self.table.set(key.clone(), Entry::Unsure);
            return self.fail(key, claim, StoreError::Rejected("the epochs are used up".into()));
        }
        tracing::debug!(store = "etcd", key = key.as_str(), epoch = epoch.0, "owned");
        self.report(Event::Gained { key: key.clone(), claim, epoch, lock_delay, quarantined_until });
        // Again with each answer: the driver may have begun anew with this one.
        let told = if rivals {
            self.report(Event::Contended { key: key.clone() });
            Told::Contended
        } else {
            Told::Gained
        };
        let owned = self.owned(revision, &value, quarantined_until, told);
        self.table.set(key.clone(), Entry::Owned(owned));
        self.finish(&key);
    }

    fn owned(&self, revision: i64, value: &RecordValue, quarantined_until: Instant, told: Told) -> Owned {
        let RecordValue { lock_delay_ms, since_unix_s, .. } = *value;
        Owned { revision, lock_delay_ms, since_unix_s, quarantined_until, told, swept: self.sweep.pass() }
    }

    fn queue(&mut self, key: &LockKey, claim: ClaimId, lock_delay_ms: u64) {
        let again = self.is_queued_as(key, claim);
        self.table.set(key.clone(), Entry::Queued(Queued { claim, lock_delay_ms }));
        if !again {
            self.report(Event::Queued { key: key.clone(), claim });
        }
    }

    fn is_queued_as(&self, key: &LockKey, claim: ClaimId) -> bool {
        matches!(self.table.get(key), Some(Entry::Queued(queued)) if queued.claim == claim)
    }

    /// The job is over; if somebody woke us meanwhile, another begins.
    fn finish(&mut self, key: &LockKey) {
        let woken = self.jobs.by_key.remove(key).is_some_and(|job| job.woken);
        if woken && self.table.get(key).is_some() {
            self.start(key.clone(), Want::Look);
        }
    }

    // Sending.

    fn send_writes(&mut self) {
        while self.jobs.writes_flying < FLIGHTS_MAX && !self.jobs.to_write.is_empty() {
            let Some(member) = self.member() else { return };
            let (me, meta, layout) = (&member.me, member.meta.revision, &self.layout);
            let count = self.jobs.to_write.len().min(WRITE_MAX);
            let writes: Vec<(LockKey, Write)> = self.jobs.to_write.iter().take(count).cloned().collect();
            let mut operations: Vec<_> = writes.iter().map(|(key, write)| write.operation(layout, me, key)).collect();
            let mut wakes: HashMap<&str, Vec<&LockKey>> = HashMap::new();
            for (key, write) in &writes {
                if let Some(name) = write.wakes() {
                    wakes.entry(name).or_default().push(key);
                }
            }
            operations.extend(wakes.into_iter().map(|(name, keys)| txn::wake(layout, me, name, &keys)));
            let transaction = txn::guarded(layout, me, meta, operations);
            self.jobs.to_write.drain(..count);
            self.jobs.writes_flying += 1;
            self.send(transaction, What::Writes(writes));
        }
    }

    fn send_reads(&mut self) {
        while self.jobs.reads_flying < FLIGHTS_MAX && !self.jobs.to_read.is_empty() {
            let Some(member) = self.member() else { return };
            let count = self.jobs.to_read.len().min(READ_MAX);
            let keys: Vec<LockKey> = self.jobs.to_read.iter().take(count).cloned().collect();
            let transaction = txn::read(&self.layout, &member.me, &keys);
            self.jobs.to_read.drain(..count);
            self.jobs.reads_flying += 1;
            self.send(transaction, What::Reads(keys));
        }
    }

    // Answers.

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
        match self.broken_guard(&response) {
            Ok(None) => {}
            Ok(Some(Guard::Lease)) => return Err(Fault::LeaseGone),
            Ok(Some(Guard::Meta(meta))) => {
                tracing::info!(store = "etcd", epoch_base = meta.epoch_base, "the epoch base was raised");
                if let Some(member) = self.member_mut() {
                    member.meta = meta;
                }
                self.jobs.ready.extend(writes.into_iter().map(|(key, _)| key));
                return Ok(());
            }
            Err(fault) => {
                writes.into_iter().for_each(|(key, _)| self.failed(key, &fault, now));
                return Err(fault);
            }
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
        let Some(job) = self.jobs.by_key.get_mut(&key) else { return };
        let rivals = !seen.queue.is_empty();
        match write {
            Write::Create { record } => self.own(key, revision, record, Instant::default(), rivals),
            Write::TakeOver { record, .. } => {
                let until = quarantine_from_now(&record);
                self.own(key, revision, record, until, rivals);
            }
            Write::Raise { record, .. } => {
                let until = match self.table.get(&key) {
                    Some(Entry::Owned(owned)) => owned.quarantined_until,
                    Some(Entry::Queued(_) | Entry::Unsure) | None => quarantine_from_now(&record),
                };
                self.own(key, revision, record, until, rivals);
            }
            Write::Enqueue { place, .. } => {
                let want = std::mem::replace(&mut job.want, Want::Look);
                (job.seen, job.refused) = (Some(seen), None);
                if let Want::Claim { claim, .. } = want {
                    self.queue(&key, claim, place.lock_delay_ms);
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
    fn failed(&mut self, key: LockKey, fault: &Fault, now: Instant) {
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
            Some(Want::Yield | Want::Look) => self.finish(&key),
            None => {}
        }
    }
}

fn quarantine_from_now(record: &RecordValue) -> Instant {
    match record.inherited_ms {
        0 => Instant::default(),
        inherited_ms => clock::now() + Duration::from_millis(inherited_ms),
    }
}
