//! A model of the store: leases, one ownership record a key, queues, and epochs that never go back.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use turnstile_core::{ClaimId, Token};

use crate::judge::{Sight, Sights};
use crate::names::until;
use crate::plan::{KEYS, LEASE_TTL, Raise};
use crate::wire::{Claim, Event, Operation};

/// One incarnation, as the store knows it. Later ones have larger names.
pub(crate) type Incarnation = u64;

#[derive(Clone, Debug)]
pub(crate) struct Store {
    leases: Vec<Lease>,
    records: [Record; KEYS.len()],
    last_incarnation: Incarnation,
    raise: Raise,
    /// Events for whom, in order.
    pub(crate) events: VecDeque<(Incarnation, Event)>,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    of: Incarnation,
    until: u64,
    dead: bool,
}

#[derive(Clone, Debug, Default)]
struct Record {
    owner: Option<Owner>,
    /// Never lowered nor forgotten.
    epoch: u64,
    lock_delay: u64,
    /// Whoever gets it waits until then: promises and lock delays of a dead owner. A yield does not touch it: a claim
    /// may be withdrawn while its answer, and with it the news of this, is on its way.
    blocked_until: u64,
    contended_told: bool,
    queue: VecDeque<(Incarnation, ClaimId, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Owner {
    name: Incarnation,
    /// The claim that was answered with the key, unless that answer got lost.
    answered: Option<ClaimId>,
}

impl Store {
    pub(crate) fn new(raise: Raise) -> Self {
        Self { leases: Vec::new(), records: Default::default(), last_incarnation: 0, raise, events: VecDeque::new() }
    }

    pub(crate) fn epoch(&self, key: usize) -> u64 {
        self.records[key].epoch
    }

    /// Somebody waits in the queue.
    pub(crate) fn is_contended(&self, key: usize) -> bool {
        !self.records[key].queue.is_empty()
    }

    /// How far a token is from the latest epoch.
    pub(crate) fn age_of_token(&self, key: usize, token: u64) -> (u64, u64) {
        let sequence = token & u64::from(Token::SEQUENCE_MAX);
        (self.records[key].epoch.wrapping_sub(token >> Token::SEQUENCE_BITS), sequence)
    }

    /// A new incarnation with a lease from now on.
    pub(crate) fn register(&mut self, now: u64) -> Incarnation {
        self.last_incarnation += 1;
        self.leases.push(Lease { of: self.last_incarnation, until: now + LEASE_TTL, dead: false });
        self.last_incarnation
    }

    pub(crate) fn submit(&mut self, now: u64, from: Incarnation, operation: Operation, sights: &Sights) {
        let Some(lease) = self.leases.iter_mut().find(|lease| lease.of == from) else { return };
        match operation {
            Operation::KeepAlive { .. } if lease.dead => self.events.push_back((from, Event::LeaseLost)),
            _ if lease.dead => {}
            Operation::KeepAlive { sent } => {
                lease.until = now + LEASE_TTL;
                self.events.push_back((from, Event::LeaseRenewed { sent }));
            }
            Operation::Claim(claim) => self.claim(now, from, claim, sights),
            Operation::Yield { key } => {
                let record = &mut self.records[key];
                record.queue.retain(|(waiting, ..)| *waiting != from);
                if record.owner.take_if(|owner| owner.name == from).is_some() {
                    if !record.queue.is_empty() {
                        sights.see(Sight::HandedOver);
                    }
                    self.promote(now, key, sights);
                }
            }
        }
    }

    /// Declares leases dead that were not renewed, and hands on what they left.
    pub(crate) fn expire(&mut self, now: u64, sights: &Sights) {
        let mut died = false;
        for lease in &mut self.leases {
            died |= lease.until <= now && !lease.dead;
            lease.dead |= lease.until <= now;
        }
        if died {
            for key in 0..KEYS.len() {
                self.promote(now, key, sights);
            }
        }
    }

    /// Forgets dead incarnations that nobody asks after: `running` are the names of those that may still ask.
    pub(crate) fn tidy(&mut self, now: u64, running: impl Fn(Incarnation) -> bool) {
        let records = &self.records;
        self.leases.retain(|lease| {
            let owns = |record: &Record| record.owner.is_some_and(|owner| owner.name == lease.of);
            !lease.dead || running(lease.of) || records.iter().any(owns)
        });
        for record in &mut self.records {
            record.blocked_until = record.blocked_until.max(now);
        }
    }

    /// The answer to this claim is lost: the store's own client does not know what it has.
    pub(crate) fn forget_answer(&mut self, of: Incarnation, key: usize) {
        if let Some(owner) = self.records[key].owner.as_mut().filter(|owner| owner.name == of) {
            owner.answered = None;
        }
    }

    fn claim(&mut self, now: u64, from: Incarnation, wanted: Claim, sights: &Sights) {
        let Claim { key, claim, lock_delay, new_epoch } = wanted;
        let record = &mut self.records[key];
        if let Some(owner) = record.owner.as_mut().filter(|owner| owner.name == from) {
            record.lock_delay = record.lock_delay.max(lock_delay);
            // Only who comes again with a claim that was answered surely remembers what was granted.
            let remembers = match self.raise {
                Raise::NewEpoch => owner.answered == Some(claim),
                Raise::OldEpoch => owner.answered.is_some(),
            };
            record.epoch += u64::from(new_epoch || !remembers);
            owner.answered = Some(claim);
            record.contended_told = false;
            let (epoch, lock_delay) = (record.epoch, record.lock_delay);
            let quarantine_left = record.blocked_until.saturating_sub(now);
            self.events.push_back((from, Event::Gained { key, claim, epoch, lock_delay, quarantine_left }));
            self.tell_contended(key);
            return;
        }
        record.queue.retain(|(waiting, ..)| *waiting != from);
        record.queue.push_back((from, claim, lock_delay));
        self.promote(now, key, sights);
        if self.records[key].queue.iter().any(|(waiting, ..)| *waiting == from) {
            self.events.push_back((from, Event::Queued { key, claim }));
        }
        self.tell_contended(key);
    }

    /// Gives a key without a live owner to the first in its queue.
    fn promote(&mut self, now: u64, key: usize, sights: &Sights) {
        let record = &mut self.records[key];
        let dead = |name| self.leases.iter().find(|lease| lease.of == name).is_none_or(|lease| lease.dead);
        record.queue.retain(|(waiting, ..)| !dead(*waiting));
        let Some(before) = record.owner else { return self.hand_over(now, key) };
        if record.queue.is_empty() || !dead(before.name) {
            return;
        }
        // Its promises ended with the lease; its lock delays run from there at the latest.
        let ended = self.leases.iter().find(|lease| lease.of == before.name).map_or(now, |lease| lease.until);
        record.blocked_until = record.blocked_until.max(ended + record.lock_delay);
        sights.see(Sight::TakenOver);
        if record.blocked_until > now {
            sights.see(Sight::QuarantineInherited);
        }
        self.hand_over(now, key);
    }

    fn hand_over(&mut self, now: u64, key: usize) {
        let record = &mut self.records[key];
        let Some((next, claim, lock_delay)) = record.queue.pop_front() else { return };
        record.owner = Some(Owner { name: next, answered: Some(claim) });
        record.epoch += 1;
        record.lock_delay = lock_delay;
        record.contended_told = false;
        let (epoch, quarantine_left) = (record.epoch, record.blocked_until.saturating_sub(now));
        self.events.push_back((next, Event::Gained { key, claim, epoch, lock_delay, quarantine_left }));
        self.tell_contended(key);
    }

    fn tell_contended(&mut self, key: usize) {
        let record = &mut self.records[key];
        if let Some(owner) = record.owner
            && !record.queue.is_empty()
            && !record.contended_told
        {
            record.contended_told = true;
            self.events.push_back((owner.name, Event::Contended { key }));
        }
    }

    /// `host_of` names the host that an incarnation runs on, and how many claims it made since one.
    pub(crate) fn feed(
        &self,
        now: u64,
        host_of: impl Fn(Incarnation, Option<ClaimId>) -> (Option<usize>, u64),
        hasher: &mut impl Hasher,
    ) {
        debug_assert!(self.events.is_empty(), "events are sent at once");
        self.leases.len().hash(hasher);
        for lease in &self.leases {
            (host_of(lease.of, None), until(now, lease.until), lease.dead).hash(hasher);
        }
        for record in &self.records {
            // Who is dead is told apart by its place among the leases.
            let owner = record.owner.map(|owner| {
                let place = self.leases.iter().position(|lease| lease.of == owner.name);
                let claim = owner.answered.map(|claim| host_of(owner.name, Some(claim)).1);
                (place, claim)
            });
            (owner, record.lock_delay, until(now, record.blocked_until).max(0), record.contended_told).hash(hasher);
            record.queue.len().hash(hasher);
            for (name, claim, lock_delay) in &record.queue {
                (host_of(*name, Some(*claim)), lock_delay).hash(hasher);
            }
        }
    }
}
