//! Who waits at a host that is away, or was declined by it, goes on to another one: where to, and what is said if there
//! is none.

use core::time::Duration;

use super::rendezvous::KeyHash;
use super::{Cluster, ClusterRef, Fitness, Hosts, Place};
use crate::clock::Instant;
use crate::session::{Decline, Rejection, Waiter};

/// Hosts that are all away are not hurried more often.
const HURRY_PAUSE: Duration = Duration::from_secs(1);

impl Hosts {
    /// What follows from an input.
    pub(super) fn settle(&mut self, now: Instant) {
        let mut has_failed = false;
        for cluster in &mut self.clusters {
            let was_there = cluster.fitness() < Fitness::Doubtful;
            cluster.observe(now);
            has_failed |= was_there && cluster.fitness() >= Fitness::Doubtful;
        }
        if self.clusters.len() == 1 {
            return;
        }
        self.place_declined(now);
        self.move_waiters(now);
        if has_failed {
            self.hurry(now);
        }
    }

    /// When no host is left that answers, those that are away are tried again: not too often, since hosts that drain
    /// answer each try with a goodbye.
    fn hurry(&mut self, now: Instant) {
        let is_early = self.hurried.is_some_and(|hurried| now < hurried + HURRY_PAUSE);
        if !is_early && self.clusters.iter().all(|cluster| cluster.fitness() >= Fitness::Doubtful) {
            self.hurried = Some(now);
            self.all().for_each(|sessions| sessions.hurry(now));
        }
    }

    /// What one host does not serve may be for another one.
    pub(super) fn place_declined(&mut self, now: Instant) {
        for index in 0..self.clusters.len() {
            let from = ClusterRef(index);
            while let Some((mut waiter, decline)) = self.get_mut(from).and_then(|it| it.sessions.take_declined()) {
                // Who was not reached was not asked.
                if decline != Decline::Unreachable {
                    waiter.note_decline(now, index, decline);
                }
                match self.place_of_declined(now, from, &waiter, decline) {
                    Some(to) if self.has_room(to) => self.adopt(now, to, waiter),
                    Some(_) => self.reject(from, &waiter, Rejection::Busy { retry_after: None }),
                    None => {
                        let rejection = self.last_word(now, from, &waiter, decline.rejection());
                        self.reject(from, &waiter, rejection);
                    }
                }
            }
        }
    }

    /// Another host for a waiter, which is asked there unless it was before.
    fn place_of_declined(
        &self,
        now: Instant,
        from: ClusterRef,
        waiter: &Waiter,
        decline: Decline,
    ) -> Option<ClusterRef> {
        let key = KeyHash::of_request(waiter.keys());
        let secret = waiter.reentry_secret();
        let may = |(.., to): &Place| *to != from && !waiter.declined_by().contains(to.0);
        // Of its own hold, the host that granted it has the last word.
        if self.is_left(secret) || decline != Decline::Unreachable && self.is_of(from, secret) == Some(true) {
            return None;
        }
        let place = match decline {
            // A host that is known to be another one need not say so itself.
            Decline::NoSuchHold => {
                self.place_of_hold(secret, key, may).filter(|(.., to)| self.is_of(*to, secret) != Some(false))
            }
            Decline::NoStore | Decline::Late if waiter.has_waited(now) => None,
            Decline::Unreachable | Decline::NoStore | Decline::Late if secret.is_empty() => {
                let has_room = |place: &Place| may(place) && place.0 < Fitness::Doubtful && self.has_room(place.2);
                let limit = if decline == Decline::Unreachable { Fitness::Down } else { Fitness::Doubtful };
                self.best(key, has_room).or_else(|| self.best(key, |place| may(place) && place.0 < limit))
            }
            Decline::Unreachable | Decline::NoStore | Decline::Late => self.place_of_hold(secret, key, may),
        };
        place.filter(|(fitness, ..)| *fitness < Fitness::Down).map(|(.., to)| to)
    }

    /// That there is no host must not be said while there is one that was not asked: under `allow` the request would go
    /// through without a lock. If it is too late to ask that one, the wait is over.
    fn last_word(&mut self, now: Instant, from: ClusterRef, waiter: &Waiter, rejection: Rejection) -> Rejection {
        if self.is_left(waiter.reentry_secret()) {
            return Rejection::NoSuchHold;
        }
        if rejection != Rejection::HostUnavailable {
            return rejection;
        }
        let mut rejection = rejection;
        for (index, cluster) in self.clusters.iter_mut().enumerate() {
            let was_asked = index == from.0 || waiter.declined_by().contains(index);
            if !was_asked && cluster.fitness() < Fitness::Doubtful {
                rejection = Rejection::WaitOver { retry_after: None };
                // It may be one that nobody has tried for a long time.
                cluster.sessions.wake(now);
            }
        }
        rejection
    }

    /// Waiters of a host that is away go on to the next.
    fn move_waiters(&mut self, now: Instant) {
        for index in 0..self.clusters.len() {
            let from = ClusterRef(index);
            let Some(fitness) = self.get(from).map(Cluster::fitness).filter(|fitness| *fitness >= Fitness::Doubtful)
            else {
                continue;
            };
            if !self.has_better(fitness) {
                continue;
            }
            let waiting: Vec<u64> =
                self.get(from).map(|cluster| cluster.sessions.waiters().collect()).unwrap_or_default();
            for id in waiting {
                let Some(to) = self.refuge(from, fitness, id) else { continue };
                if let Some(waiter) = self.get_mut(from).and_then(|from| from.sessions.take_waiter(id)) {
                    self.adopt(now, to, waiter);
                }
                if !self.has_better(fitness) {
                    break;
                }
            }
        }
    }

    /// Whether any waiter may move. Asked first, since it costs nothing, and a long queue is looked through at every
    /// message otherwise, just when the hosts that are left have most to do.
    fn has_better(&self, than: Fitness) -> bool {
        self.clusters.iter().any(|other| other.fitness() < than && other.sessions.has_room())
    }

    /// A better place for a waiter of a host that is away. One that joins a hold stays with the host that granted it.
    fn refuge(&self, from: ClusterRef, fitness: Fitness, id: u64) -> Option<ClusterRef> {
        let waiter = self.get(from)?.sessions.waiter(id)?;
        let (key, secret) = (KeyHash::of_request(waiter.keys()), waiter.reentry_secret());
        let may = |(.., to): &Place| *to == from || self.has_room(*to);
        let is_new = |place: &Place| may(place) && (place.2 == from || !waiter.declined_by().contains(place.2.0));
        let place = if secret.is_empty() {
            // Rather than nowhere, it goes where it was declined: that may be long ago.
            self.best(key, is_new).filter(|place| place.0 < fitness).or_else(|| self.best(key, may))
        } else {
            self.place_of_hold(secret, key, is_new)
        };
        place.filter(|(better, _, to)| *better < fitness && *to != from).map(|(.., to)| to)
    }

    fn has_room(&self, cluster: ClusterRef) -> bool {
        self.get(cluster).is_some_and(|cluster| cluster.sessions.has_room())
    }

    fn adopt(&mut self, now: Instant, to: ClusterRef, waiter: Waiter) {
        self.failovers += 1;
        if let Some(cluster) = self.get_mut(to) {
            cluster.sessions.adopt(now, waiter);
        }
    }

    fn reject(&mut self, from: ClusterRef, waiter: &Waiter, rejection: Rejection) {
        if let Some(cluster) = self.get_mut(from) {
            cluster.sessions.reject_declined(waiter, rejection);
        }
    }
}
