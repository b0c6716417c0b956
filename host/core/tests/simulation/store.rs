//! A model of the store, by the contract in `host/src/store`: leases, one ownership record a key, queues, and epochs
//! that never go back. A claim's answer may get lost, whether it landed or not.

use std::collections::{BTreeMap, VecDeque};

use turnstile_core::{ClaimId, LockKey};

use crate::clock::{MS, SECOND};
use crate::mutants::Sabotage;
use crate::wire::Run;

/// A claim that failed is tried again before this has passed.
const UNTOLD_MAX: u64 = 4 * SECOND;

/// One incarnation, as the store knows it: a run of a host has another one after each lost lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Incarnation {
    pub(crate) of: Run,
    pub(crate) life: u32,
}

/// What an incarnation asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Claim {
        key: LockKey,
        claim: ClaimId,
        lock_delay: u64,
        new_epoch: bool,
    },
    Yield {
        key: LockKey,
    },
    /// The instant at which it was sent comes back, to anchor the lease at.
    KeepAlive {
        sent: u64,
    },
    EndLease,
}

/// What the store tells an incarnation.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Gained { key: LockKey, claim: ClaimId, epoch: u64, lock_delay: u64, quarantine_left: u64 },
    Queued { key: LockKey, claim: ClaimId },
    Failed { key: LockKey, claim: ClaimId, why: Failure },
    Contended { key: LockKey },
    Lost { key: LockKey },
    LeaseRenewed { sent: u64 },
    LeaseLost,
    LeaseEnded,
}

/// How a claim failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nothing was written.
    Unavailable,
    /// It may have been written.
    Ambiguous,
    /// The store will not have it.
    Rejected,
}

#[derive(Debug)]
pub(crate) struct Store {
    sabotage: Sabotage,
    lease_ttl: u64,
    leases: BTreeMap<Incarnation, Lease>,
    records: BTreeMap<LockKey, Record>,
    /// Events for whom, in order.
    pub(crate) events: VecDeque<(Incarnation, Event)>,
    queued: u64,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    until: u64,
    dead: bool,
}

#[derive(Debug, Default)]
struct Record {
    owner: Option<Incarnation>,
    /// Never lowered nor forgotten.
    epoch: u64,
    lock_delay: u64,
    /// The owner's claim that was answered last, if it was: only then the owner is known to remember what it granted
    /// under this epoch.
    answered: Option<ClaimId>,
    /// The owner was told that it is one.
    told: bool,
    since: u64,
    /// Whoever gets it waits until then: promises and lock delays of a dead owner. A yield does not touch it: a claim
    /// may be withdrawn while its answer, and with it the news of this, is on its way.
    blocked_until: u64,
    /// It was taken from this owner by hand; all others wait until then.
    taken_from: Option<(Incarnation, u64)>,
    contended_told: bool,
    queue: VecDeque<(Incarnation, ClaimId, u64)>,
}

impl Store {
    pub(crate) fn new(lease_ttl: u64, sabotage: Sabotage) -> Self {
        let (leases, records, events) = (BTreeMap::new(), BTreeMap::new(), VecDeque::new());
        Self { sabotage, lease_ttl, leases, records, events, queued: 0 }
    }

    /// When the lease of this run ends, as far as it was renewed.
    pub(crate) fn lease_until(&self, of: Run) -> u64 {
        let leases = self.leases.range(Incarnation { of, life: 0 }..=Incarnation { of, life: u32::MAX });
        leases.map(|(_, lease)| lease.until).max().unwrap_or(0)
    }

    /// When the next lease ends, if it is not renewed.
    pub(crate) fn next_death(&self) -> Option<u64> {
        self.leases.values().filter(|lease| !lease.dead).map(|lease| lease.until).min()
    }

    pub(crate) fn submit(&mut self, now: u64, from: Incarnation, operation: Operation) {
        self.expire(now);
        let dead = self.leases.get(&from).is_some_and(|lease| lease.dead);
        match operation {
            Operation::KeepAlive { .. } if dead => self.events.push_back((from, Event::LeaseLost)),
            Operation::KeepAlive { sent } => {
                self.leases.insert(from, Lease { until: now + self.lease_ttl, dead: false });
                self.release_untold(now, from);
                self.events.push_back((from, Event::LeaseRenewed { sent }));
            }
            Operation::EndLease => self.end_lease(now, from),
            _ if dead => {}
            Operation::Claim { key, claim, lock_delay, new_epoch } => {
                self.claim(now, from, key, claim, lock_delay, new_epoch);
            }
            Operation::Yield { key } => {
                let record = self.records.entry(key.clone()).or_default();
                record.queue.retain(|(waiting, ..)| *waiting != from);
                if record.owner == Some(from) {
                    record.owner = None;
                    self.promote(now, &key);
                }
            }
        }
    }

    /// Whatever lease the run has is over. (The store of a host whose lease was lost has got another one by itself.)
    fn end_lease(&mut self, now: u64, from: Incarnation) {
        for (_, lease) in self.leases.iter_mut().filter(|(incarnation, _)| incarnation.of == from.of) {
            lease.dead = true;
            lease.until = lease.until.min(now);
        }
        self.events.push_back((from, Event::LeaseEnded));
        self.take_over_from_dead(now);
    }

    /// A claim whose answer gets lost, although it lands or not. What the store tells later is not lost.
    pub(crate) fn submit_unanswered(&mut self, now: u64, from: Incarnation, operation: Operation, landed: bool) {
        let Operation::Claim { key, claim, .. } = &operation else { return self.submit(now, from, operation) };
        let (key, claim) = (key.clone(), *claim);
        let before = self.events.len();
        let knew = self.records.get(&key).is_some_and(|record| record.owner == Some(from) && record.told);
        if landed {
            self.submit(now, from, operation);
        }
        let mut index = 0;
        self.events.retain(|(to, event)| {
            index += 1;
            let answer = match event {
                Event::Gained { claim: answered, .. } | Event::Queued { claim: answered, .. } => *answered == claim,
                _ => false,
            };
            index <= before || *to != from || !answer
        });
        if let Some(record) = self.records.get_mut(&key).filter(|record| record.owner == Some(from)) {
            (record.answered, record.told) = (None, knew);
        }
        let why = if landed { Failure::Ambiguous } else { Failure::Unavailable };
        self.events.push_back((from, Event::Failed { key, claim, why }));
    }

    /// Will not have this claim.
    pub(crate) fn refuse(&mut self, from: Incarnation, operation: &Operation) {
        if let Operation::Claim { key, claim, .. } = operation {
            self.events.push_back((from, Event::Failed { key: key.clone(), claim: *claim, why: Failure::Rejected }));
        }
    }

    /// Declares leases dead that were not renewed, and hands on what they left.
    pub(crate) fn expire(&mut self, now: u64) {
        let mut died = false;
        for lease in self.leases.values_mut() {
            if lease.until <= now && !lease.dead {
                lease.dead = true;
                died = true;
            }
        }
        if died {
            self.take_over_from_dead(now);
        }
    }

    /// Somebody deletes the record of a live owner by hand. The owner is told, before its lease is renewed again; so
    /// all that it may grant until then ends with a lease that it has already.
    pub(crate) fn tamper(&mut self, now: u64, key: &LockKey) {
        let Some(record) = self.records.get_mut(key) else { return };
        let Some(owner) = record.owner.take() else { return };
        // What an earlier record remembered of that owner is not forgotten with this one.
        let before = record.taken_from.map_or(0, |(_, until)| until);
        record.taken_from = Some((owner, before.max(now + self.lease_ttl + record.lock_delay)));
        self.events.push_back((owner, Event::Lost { key: key.clone() }));
        self.promote(now, key);
    }

    /// Gives up what a claim has left that was thought lost and landed, if nobody asks again.
    fn release_untold(&mut self, now: u64, from: Incarnation) {
        let untold = |record: &Record| record.owner == Some(from) && !record.told && record.since + UNTOLD_MAX <= now;
        let keys: Vec<LockKey> =
            self.records.iter().filter(|(_, record)| untold(record)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            if let Some(record) = self.records.get_mut(&key) {
                record.owner = None;
            }
            self.promote(now, &key);
        }
    }

    fn claim(&mut self, now: u64, from: Incarnation, key: LockKey, claim: ClaimId, lock_delay: u64, new_epoch: bool) {
        // A store has a lease before it claims anything.
        self.leases.entry(from).or_insert(Lease { until: now + self.lease_ttl, dead: false });
        let record = self.records.entry(key.clone()).or_default();
        if self.sabotage == Sabotage::OldSelfTakenForLive
            && record.owner.is_some_and(|owner| owner.of.host == from.of.host && owner != from)
        {
            record.owner = Some(from);
        }
        if record.owner == Some(from) {
            record.lock_delay = record.lock_delay.max(lock_delay);
            // Some stores raise it each time.
            let keeps = record.answered.is_some() && (claim.0.is_multiple_of(2) || record.answered == Some(claim));
            record.epoch += u64::from(new_epoch || !keeps);
            (record.answered, record.told) = (Some(claim), true);
            let (epoch, lock_delay) = (record.epoch, record.lock_delay);
            let quarantine_left = record.blocked_until.saturating_sub(now);
            self.events
                .push_back((from, Event::Gained { key: key.clone(), claim, epoch, lock_delay, quarantine_left }));
            record.contended_told = false;
            return self.tell_contended(&key);
        }
        let place = record.queue.iter_mut().find(|(waiting, ..)| *waiting == from);
        match place {
            Some((_, of, longest)) => (*of, *longest) = (claim, lock_delay.max(*longest)),
            None => record.queue.push_back((from, claim, lock_delay)),
        }
        let owner = record.owner;
        self.promote(now, &key);
        let Some(record) = self.records.get_mut(&key) else { return };
        if record.owner == owner && owner.is_some() {
            self.events.push_back((from, Event::Queued { key: key.clone(), claim }));
            self.queued += 1;
            if self.sabotage == Sabotage::PlaceForgotten && self.queued.is_multiple_of(3) {
                record.queue.retain(|(waiting, ..)| *waiting != from);
            }
        }
        self.tell_contended(&key);
    }

    /// Gives a key without a live owner to the first in its queue.
    fn promote(&mut self, now: u64, key: &LockKey) {
        let Some(record) = self.records.get_mut(key) else { return };
        let leases = &self.leases;
        let of_dead = record.owner.and_then(|owner| leases.get(&owner)).filter(|lease| lease.dead);
        if record.owner.is_some() && of_dead.is_none() {
            return;
        }
        record.queue.retain(|(waiting, ..)| leases.get(waiting).is_some_and(|lease| !lease.dead));
        let Some((next, claim, lock_delay)) = record.queue.pop_front() else { return };
        if let Some(lease) = of_dead {
            // Its promises ended with the lease; its lock delays run from there at the latest.
            let delays = if self.sabotage == Sabotage::DelayOfTheDeadForgotten { 0 } else { record.lock_delay };
            record.blocked_until = record.blocked_until.max(lease.until + delays);
        }
        let taken = record.taken_from.filter(|(from, _)| *from != next).map_or(0, |(_, until)| until);
        // Even a claim whose answer is lost must not lose this.
        record.blocked_until = record.blocked_until.max(taken);
        let quarantine_left = record.blocked_until.saturating_sub(now);
        record.owner = Some(next);
        record.epoch += u64::from(of_dead.is_none() || self.sabotage != Sabotage::EpochOfTheDeadKept);
        record.lock_delay = lock_delay;
        (record.answered, record.told, record.since) = (Some(claim), true, now);
        record.contended_told = false;
        let (epoch, lock_delay) = (record.epoch, record.lock_delay);
        let gained = Event::Gained { key: key.clone(), claim, epoch, lock_delay, quarantine_left };
        self.events.push_back((next, gained));
        self.tell_contended(key);
    }

    fn tell_contended(&mut self, key: &LockKey) {
        let Some(record) = self.records.get_mut(key) else { return };
        if let Some(owner) = record.owner
            && !record.queue.is_empty()
            && !record.contended_told
        {
            record.contended_told = true;
            self.events.push_back((owner, Event::Contended { key: key.clone() }));
        }
    }

    fn take_over_from_dead(&mut self, now: u64) {
        let keys: Vec<LockKey> = self.records.keys().cloned().collect();
        for key in keys {
            self.promote(now, &key);
        }
    }
}

/// How long a host keeps off, by its own clock, when the store says `left`.
pub(crate) fn kept_off(left: u64) -> u64 {
    if left == 0 { 0 } else { left * 103 / 100 + MS }
}
