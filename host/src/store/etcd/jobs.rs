//! What is being done about keys: decided one by one, sent many at a time, concluded when the answer comes.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use turnstile_core::{ClaimId, Epoch, Instant, LockKey, Token};

use super::decide::{Circumstances, Step, Want, millis_up};
use super::lanes::Lanes;
use super::layout::RecordValue;
use super::link::Fault;
use super::table::{Entry, Owned, Queued, Told};
use super::txn::{self, Call, Handed, READ_MAX, Rivals, Seen, WRITE_MAX, Write};
use super::worker::{What, Worker, unix_s};
use crate::store::{Event, Operation, StoreError};

/// Transactions under way at once, of each kind: more would only make each smaller.
const FLIGHTS_MAX: usize = 2;
/// Operations that are taken up before others are done.
const JOBS_MAX: usize = 1_024;
/// Queued keys that are looked at once a TTL, in turns, in case a wake was lost.
const ROUND_MAX: usize = 500;
/// Before something is tried again that cannot go on.
const PAUSE: Duration = Duration::from_millis(50);
/// Refusals in a row after which a key gets such a pause.
pub(super) const REFUSALS_MAX: u32 = 8;

/// What is being done about one key.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) want: Want,
    pub(super) seen: Option<Seen>,
    pub(super) refused: Option<Write>,
    pub(super) refusals: u32,
    /// Somebody asked us to look at the key meanwhile.
    woken: bool,
    /// The driver waits for it; other jobs make room.
    driven: bool,
}

/// Everything that is being done.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    pub(super) by_key: HashMap<LockKey, Job>,
    pub(super) ready: VecDeque<LockKey>,
    to_write: Lanes<(LockKey, Write)>,
    to_read: Lanes<LockKey>,
    paused: Vec<LockKey>,
    /// Whom to wake beside all writes.
    nudges: Vec<(String, LockKey)>,
    driven: usize,
    retry_at: Option<Instant>,
    pub(super) writes_flying: usize,
    pub(super) reads_flying: usize,
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

    pub(super) fn decide_again(&mut self, keys: &[LockKey]) {
        for key in keys {
            if let Some(job) = self.by_key.get_mut(key) {
                (job.seen, job.refused) = (None, None);
                self.ready.push_back(key.clone());
            }
        }
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

impl Worker {
    /// Takes up what was submitted, decides, and sends as much as may be under way.
    pub(super) fn pump(&mut self, now: Instant) {
        if self.link().is_none() {
            return;
        }
        if self.jobs.retry_at.is_some_and(|at| at <= now) {
            self.jobs.retry_now();
        }
        // What ends at once makes room for what waits behind it.
        while self.take_up(now) {
            while let Some(key) = self.jobs.ready.pop_front() {
                self.decide(key, now);
            }
        }
        self.send_nudges();
        self.send_writes();
        self.send_reads();
    }

    /// Takes operations that were submitted; true if there is something to decide.
    fn take_up(&mut self, now: Instant) -> bool {
        let room = JOBS_MAX.saturating_sub(self.jobs.driven);
        for operation in self.pending.take_unless(room, |key| self.jobs.by_key.contains_key(key)) {
            match operation {
                Operation::Claim { key, claim, lock_delay, new_epoch } => {
                    let lock_delay_ms = millis_up(lock_delay);
                    self.promised(lock_delay_ms);
                    self.begin(key, Want::Claim { claim, lock_delay_ms, new_epoch }, true);
                }
                Operation::Yield { key } => {
                    if !self.keep_for_quarantine(&key, now) {
                        self.begin(key, Want::Yield, true);
                    }
                }
                Operation::EndLease => {}
            }
        }
        !self.jobs.ready.is_empty()
    }

    /// Begins to do something about a key of our own accord, unless something is done about it already.
    pub(super) fn start(&mut self, key: LockKey, want: Want) {
        if !self.jobs.has(&key) {
            self.begin(key, want, false);
        }
    }

    fn begin(&mut self, key: LockKey, want: Want, driven: bool) {
        let job = Job { want, seen: None, refused: None, refusals: 0, woken: false, driven };
        self.jobs.by_key.insert(key.clone(), job);
        self.jobs.driven += usize::from(driven);
        self.jobs.ready.push_back(key);
    }

    /// What other hosts call us for.
    pub(super) fn called(&mut self, calls: Vec<Call>) {
        for call in calls {
            match call {
                Call::Look(keys) => keys.into_iter().for_each(|key| self.wake(key)),
                Call::Handed(handed) => self.take_handed(handed),
            }
        }
    }

    fn wake(&mut self, key: LockKey) {
        if let Some(job) = self.jobs.by_key.get_mut(&key) {
            job.woken = true;
            return;
        }
        match self.table.get(&key) {
            Some(Entry::Owned(_) | Entry::Queued(_)) => self.start(key, Want::Look),
            Some(Entry::Unsure) | None => self.give_back(key),
        }
    }

    /// A record was handed to us in the write that tells so. It is ours without another look if it is what we wait for:
    /// a late call is of an earlier time in the queue, and another `meta` makes another epoch of the revision.
    fn take_handed(&mut self, handed: Handed) {
        let Handed { key, lock_delay_ms, meta_revision, more, revision } = handed;
        let awaited = match self.table.get(&key) {
            Some(Entry::Queued(queued)) => queued.revision < revision && queued.lock_delay_ms <= lock_delay_ms,
            _ => false,
        };
        let Some(member) = self.member().filter(|member| member.meta.revision == meta_revision) else {
            return self.wake(key);
        };
        if !awaited || self.jobs.has(&key) {
            return self.wake(key);
        }
        let (host, ttl_ms) = (member.me.name.clone(), millis_up(self.config.lease_ttl));
        let value = RecordValue { host, ttl_ms, lock_delay_ms, inherited_ms: 0, since_unix_s: unix_s() };
        let rivals = if more { Rivals::Unknown } else { Rivals::None };
        self.own(key.clone(), revision, value, Instant::default(), rivals);
        // Who else waits? There may be others since.
        self.start(key, Want::Look);
    }

    /// Others wait for these keys, of which some may be ours.
    pub(super) fn waited_for(&mut self, keys: Vec<LockKey>) {
        for key in keys {
            if matches!(self.table.get(&key), Some(Entry::Owned(_))) {
                self.start(key, Want::Look);
            }
        }
    }

    /// Finds out about writes that may have landed and that nobody asks about any more.
    pub(super) fn give_back_unsure(&mut self) {
        for key in self.table.unsure_for_long() {
            self.start(key, Want::Yield);
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
    pub(super) fn fail_claims(&mut self, reason: &str, now: Instant) {
        let waiting = std::mem::take(&mut self.jobs.paused).into_iter().chain(std::mem::take(&mut self.jobs.ready));
        let waiting = waiting.chain(self.jobs.to_write.take_all().map(|(key, _)| key));
        let waiting: Vec<LockKey> = waiting.chain(self.jobs.to_read.take_all()).collect();
        for key in waiting {
            self.failed(key, &Fault::Unavailable(reason.to_owned()), now);
        }
        for operation in self.pending.take_claims() {
            if let Operation::Claim { key, claim, .. } = operation {
                self.report(Event::Failed { key, claim, error: StoreError::Unavailable(reason.to_owned()) });
            }
        }
    }

    pub(super) fn fail(&mut self, key: LockKey, claim: ClaimId, error: StoreError) {
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
                    let driven = job.driven;
                    self.jobs.to_write.push((key, write), driven);
                }
            }
            Step::Read => {
                let driven = job.driven;
                self.jobs.to_read.push(key, driven);
            }
            Step::Unbelieving => self.look_again(key, now),
            Step::Unlisted => {
                self.relist();
                self.look_again(key, now);
            }
            step => self.conclude(key, step),
        }
    }

    /// After a pause, from what is there then.
    pub(super) fn look_again(&mut self, key: LockKey, now: Instant) {
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
                // Our own place went with the hand-over.
                let rivals = job.seen.take().map_or(Rivals::None, |seen| seen.rivals(&record.value.host));
                self.own(key, record.revision, record.value, quarantined_until, rivals);
            }
            Step::Queued { nudge } => {
                self.jobs.nudges.extend(nudge.map(|name| (name, key.clone())));
                self.finish(&key);
            }
            Step::Kept { revision, rivals } => {
                let contended = rivals.any();
                if let Some(Entry::Owned(owned)) = self.table.get(&key) {
                    let owned = Owned { revision, rivals, ..owned.clone() };
                    self.table.set(key.clone(), Entry::Owned(owned));
                }
                self.finish(&key);
                if contended && self.table.contend(&key) {
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
                let owned = self.owned(record.revision, &record.value, quarantined_until, Told::GivenUp, Rivals::None);
                self.table.set(key.clone(), Entry::Owned(owned));
                self.finish(&key);
            }
            Step::Nothing { nudge } => {
                self.jobs.nudges.extend(nudge.map(|name| (name, key.clone())));
                if !matches!(want, Want::Look) {
                    self.table.remove(&key);
                }
                self.finish(&key);
            }
            Step::Write(_) | Step::Read | Step::Unbelieving | Step::Unlisted => {}
        }
    }

    /// Takes down that the key is ours, and tells the driver; ends the job.
    pub(super) fn own(
        &mut self,
        key: LockKey,
        revision: i64,
        value: RecordValue,
        quarantined_until: Instant,
        rivals: Rivals,
    ) {
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
        let told = if rivals.any() {
            self.report(Event::Contended { key: key.clone() });
            Told::Contended
        } else {
            Told::Gained
        };
        let owned = self.owned(revision, &value, quarantined_until, told, rivals);
        self.table.set(key.clone(), Entry::Owned(owned));
        self.finish(&key);
    }

    fn owned(
        &self,
        revision: i64,
        value: &RecordValue,
        quarantined_until: Instant,
        told: Told,
        rivals: Rivals,
    ) -> Owned {
        let RecordValue { lock_delay_ms, since_unix_s, .. } = *value;
        let swept = self.sweep.pass();
        Owned { revision, lock_delay_ms, since_unix_s, quarantined_until, told, rivals, swept }
    }

    pub(super) fn queue(&mut self, key: &LockKey, claim: ClaimId, lock_delay_ms: u64, revision: i64) {
        let again = self.is_queued_as(key, claim);
        self.table.set(key.clone(), Entry::Queued(Queued { claim, lock_delay_ms, revision }));
        if !again {
            self.report(Event::Queued { key: key.clone(), claim });
        }
    }

    pub(super) fn is_queued_as(&self, key: &LockKey, claim: ClaimId) -> bool {
        matches!(self.table.get(key), Some(Entry::Queued(queued)) if queued.claim == claim)
    }

    /// The job is over; if somebody woke us meanwhile, another begins.
    pub(super) fn finish(&mut self, key: &LockKey) {
        let Some(job) = self.jobs.by_key.remove(key) else { return };
        self.jobs.driven -= usize::from(job.driven);
        if let Some(entry @ Entry::Owned(Owned { told: Told::GivenUp, .. })) = self.table.get(key) {
            // Its time may have come while something else was done about it.
            self.table.set(key.clone(), entry.clone());
        }
        if job.woken {
            self.wake(key.clone());
        }
    }

    // Sending.

    /// Whoever does not know that it is its turn is woken beside all writes.
    fn send_nudges(&mut self) {
        if self.jobs.nudges.is_empty() {
            return;
        }
        let count = self.jobs.nudges.len().min(WRITE_MAX);
        let nudges: Vec<(String, LockKey)> = self.jobs.nudges.drain(..count).collect();
        let Some(member) = self.member() else { return };
        let transaction = txn::nudge(&self.layout, &member.me, member.meta.revision, &nudges);
        self.send(transaction, What::Nudges);
    }

    fn send_writes(&mut self) {
        let Some((me, meta)) = self.member().map(|member| (member.me.clone(), member.meta.revision)) else { return };
        while self.jobs.writes_flying < FLIGHTS_MAX && !self.jobs.to_write.is_empty() {
            let writes = self.jobs.to_write.take(WRITE_MAX);
            let transaction = txn::write(&self.layout, &me, meta, &writes);
            self.jobs.writes_flying += 1;
            self.send(transaction, What::Writes(writes));
        }
    }

    fn send_reads(&mut self) {
        let Some((me, meta)) = self.member().map(|member| (member.me.clone(), member.meta.revision)) else { return };
        while self.jobs.reads_flying < FLIGHTS_MAX && !self.jobs.to_read.is_empty() {
            let keys = self.jobs.to_read.take(READ_MAX);
            let transaction = txn::read(&self.layout, &me, meta, &keys);
            self.jobs.reads_flying += 1;
            self.send(transaction, What::Reads(keys));
        }
    }
}
