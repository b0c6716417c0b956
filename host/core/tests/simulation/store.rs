//! A model of the store: leases, one ownership record a key, queues, and epochs that never go back.

use std::collections::{BTreeMap, VecDeque};

use turnstile_core::{ClaimId, LockKey};

use crate::clock::{MS, SECOND};

pub(crate) const LEASE_TTL: u64 = 5 * SECOND;

/// One incarnation, as the store knows it.
pub(crate) type Incarnation = u64;

/// What an incarnation asks.
#[derive(Clone, Debug)]
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
    Refused { key: LockKey, claim: ClaimId },
    Contended { key: LockKey },
    Lost { key: LockKey },
    LeaseRenewed { sent: u64 },
    LeaseLost,
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    /// When each lease ends, or ended.
    leases: BTreeMap<Incarnation, Lease>,
    records: BTreeMap<LockKey, Record>,
    /// Events for whom, in order.
    pub(crate) events: VecDeque<(Incarnation, Event)>,
    /// How many of the next claims are refused.
    pub(crate) refusals: u32,
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
    /// Whoever gets it waits until then: promises and lock delays of a dead owner. A yield does not touch it: a claim
    /// may be withdrawn while its answer, and with it the news of this, is on its way.
    blocked_until: u64,
    /// It was taken from this owner by hand; all others wait until then.
    taken_from: Option<(Incarnation, u64)>,
    contended_told: bool,
    queue: VecDeque<(Incarnation, ClaimId, u64)>,
}

impl Store {
    /// When the incarnation's lease ends as far as it was renewed.
    pub(crate) fn lease_until(&self, incarnation: Incarnation) -> u64 {
        self.leases.get(&incarnation).map_or(0, |lease| lease.until)
    }

    /// A lease that never ends.
    pub(crate) fn immortal(&mut self, incarnation: Incarnation) {
        self.leases.insert(incarnation, Lease { until: u64::MAX, dead: false });
    }

    pub(crate) fn submit(&mut self, now: u64, from: Incarnation, operation: Operation) {
        self.expire(now);
        let dead = self.leases.get(&from).is_some_and(|lease| lease.dead);
        match operation {
            Operation::KeepAlive { sent } => {
                if dead {
                    self.events.push_back((from, Event::LeaseLost));
                } else {
                    self.leases.insert(from, Lease { until: now + LEASE_TTL, dead: false });
                    self.events.push_back((from, Event::LeaseRenewed { sent }));
                }
            }
            _ if dead => {}
            Operation::Claim { key, claim, .. } if self.refusals > 0 => {
                self.refusals -= 1;
                self.events.push_back((from, Event::Refused { key, claim }));
            }
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
            Operation::EndLease => {
                if let Some(lease) = self.leases.get_mut(&from) {
                    lease.dead = true;
                    lease.until = lease.until.min(now);
                }
                self.take_over_from_dead(now);
            }
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

    /// Somebody deletes the record of a live owner by hand. The owner is told; others are kept off long enough.
    pub(crate) fn tamper(&mut self, now: u64, key: &LockKey, spared: Incarnation, blocked: u64) {
        let Some(record) = self.records.get_mut(key) else { return };
        let Some(owner) = record.owner.take_if(|owner| *owner != spared) else { return };
        record.taken_from = Some((owner, now + blocked + record.lock_delay));
        self.events.push_back((owner, Event::Lost { key: key.clone() }));
        self.promote(now, key);
    }

    fn claim(&mut self, now: u64, from: Incarnation, key: LockKey, claim: ClaimId, lock_delay: u64, new_epoch: bool) {
        let record = self.records.entry(key.clone()).or_default();
        if record.owner == Some(from) {
            record.lock_delay = record.lock_delay.max(lock_delay);
            record.epoch += u64::from(new_epoch);
            let (epoch, lock_delay) = (record.epoch, record.lock_delay);
            self.events.push_back((from, Event::Gained { key, claim, epoch, lock_delay, quarantine_left: 0 }));
            return;
        }
        record.queue.retain(|(waiting, ..)| *waiting != from);
        record.queue.push_back((from, claim, lock_delay));
        let owner = record.owner;
        self.promote(now, &key);
        let Some(record) = self.records.get_mut(&key) else { return };
        if record.owner == owner && owner.is_some() {
            self.events.push_back((from, Event::Queued { key: key.clone(), claim }));
        }
        self.tell_contended(&key);
    }

    /// Gives a key without a live owner to the first in its queue.
    fn promote(&mut self, now: u64, key: &LockKey) {
        let Some(record) = self.records.get_mut(key) else { return };
        if let Some(owner) = record.owner {
            let Some(lease) = self.leases.get(&owner) else { return };
            if !lease.dead {
                return;
            }
            // Its promises ended with the lease; its lock delays run from there at the latest.
            record.blocked_until = record.blocked_until.max(lease.until + record.lock_delay);
            record.owner = None;
        }
        let leases = &self.leases;
        record.queue.retain(|(waiting, ..)| leases.get(waiting).is_some_and(|lease| !lease.dead));
        let Some((next, claim, lock_delay)) = record.queue.pop_front() else { return };
        let taken = record.taken_from.filter(|(from, _)| *from != next).map_or(0, |(_, until)| until);
        let quarantine_left = record.blocked_until.max(taken).saturating_sub(now);
        record.owner = Some(next);
        record.epoch += 1;
        record.lock_delay = lock_delay;
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

/// Until when a host may rely on a lease whose keepalive it sent at `sent` (its own clock): less the allowance for
/// clock rates.
pub(crate) fn lease_until(sent: u64) -> u64 {
    sent + LEASE_TTL * 98 / 100
}

/// How long a host keeps off, by its own clock, when the store says `left`.
pub(crate) fn kept_off(left: u64) -> u64 {
    if left == 0 { 0 } else { left * 103 / 100 + MS }
}
