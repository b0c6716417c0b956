//! What of the engine's state decides how it goes on, for a model checker: states that differ in nothing else are one.
//!
//! Instants count from now, names that only count are shown as a [`View`] sees them, the order of requests by rank.
//! Places in tables are shown, and which are vacant: of timers due at one instant, the smaller place goes first. Left out
//! is what only reports and estimates tell (since when, how long), what [`Engine::check`] derives from the rest (timers,
//! counters), and when a session that may have been heard since is looked at. The model's own test shows that nothing
//! else is missing.

use std::hash::{Hash, Hasher};

use slab::Slab;

use crate::families::{Family, Kin};
use crate::keys::{Key, KeyIndex, Owned, Ownership};
use crate::promise::Lease;
use crate::requests::{KeyUse, Request, Stage};
use crate::sessions::{Link, Session};
use crate::timers::Timer;
use crate::{ClaimId, Engine, Epoch, HeartbeatSeq, Instant, LockKey, SessionId, Token};

/// How names that only count are shown, so that what is equal but for its age looks equal.
#[allow(missing_docs)] // The names say it all.
pub trait View {
    /// Keeps the order of sessions.
    fn session(&self, session: SessionId) -> u64;
    fn seq(&self, session: SessionId, seq: HeartbeatSeq) -> u64;
    fn epoch(&self, key: &LockKey, epoch: Epoch) -> u64;
    /// The time from now until `at`, which may have passed.
    fn until(&self, at: Instant) -> i64;
}

impl Engine {
    /// Feeds `hasher` with the state as `view` sees it. To be called between inputs, when all commands are taken.
    #[doc(hidden)]
    pub fn fingerprint(&self, view: &impl View, hasher: &mut impl Hasher) {
        debug_assert!(self.commands.is_empty() && !self.settling, "not between inputs");
        (self.phase as u8, self.fault().is_some()).hash(hasher);
        let lease = match self.lease {
            Lease::None => None,
            Lease::Until(until) => Some(view.until(until).max(0)),
        };
        lease.hash(hasher);
        let shown = Shown { engine: self, view };
        self.keys.len().hash(hasher);
        for (index, key) in self.keys.iter() {
            shown.key(index, key, hasher);
        }
        let idle = self.keys.walk_idle().map(|(index, since)| (index, view.until(since + self.config.idle_ownership)));
        idle.collect::<Vec<_>>().hash(hasher);
        (self.requests.holds(), self.requests.waiters()).hash(hasher);
        for (index, request) in self.requests.iter() {
            index.hash(hasher);
            shown.request(request, hasher);
        }
        self.families.iter().count().hash(hasher);
        for (index, family) in self.families.iter() {
            index.hash(hasher);
            shown.family(family, hasher);
        }
        (self.keys.vacant(), self.requests.vacant(), self.families.vacant()).hash(hasher);
        let mut sessions: Vec<_> = self.sessions.iter().map(|(id, session)| (view.session(id), id, session)).collect();
        sessions.sort_unstable_by_key(|(name, ..)| *name);
        sessions.len().hash(hasher);
        for (name, id, session) in sessions {
            name.hash(hasher);
            shown.session(id, session, hasher);
        }
    }

    /// How many claims were made after this one.
    #[doc(hidden)]
    pub fn claims_since(&self, claim: ClaimId) -> u64 {
        self.last_claim - claim.0
    }
}

struct Shown<'a, V> {
    engine: &'a Engine,
    view: &'a V,
}

impl<V: View> Shown<'_, V> {
    fn key(&self, index: KeyIndex, key: &Key, hasher: &mut impl Hasher) {
        (index, &key.name).hash(hasher);
        match &key.ownership {
            Ownership::None => 0_u8.hash(hasher),
            Ownership::Claiming { claim, asked, queued } => {
                (1_u8, self.engine.claims_since(*claim), asked, queued).hash(hasher);
            }
            Ownership::Owned(owned) => {
                2_u8.hash(hasher);
                self.owned(index, &key.name, owned, hasher);
            }
        }
        let until = |at| self.view.until(at);
        let holders: Vec<_> = key.holders.iter().collect();
        let lingering: Vec<_> = key.holders.lingering().map(|(at, mode)| (until(at), mode)).collect();
        (holders, lingering, key.quarantine.map(until), until(key.inherited).max(0)).hash(hasher);
        key.last_token.map(|token| self.token(&key.name, token)).hash(hasher);
        self.engine.stalled.contains(&index).hash(hasher);
        key.queue.is_some().hash(hasher);
        if let Some(queue) = &key.queue {
            let waiters: Vec<_> = queue.iter().map(|entry| entry.request).collect();
            (waiters, queue.lock_delay, queue.pinned_by).hash(hasher);
        }
    }

    fn owned(&self, index: KeyIndex, name: &LockKey, owned: &Owned, hasher: &mut impl Hasher) {
        (self.view.epoch(name, owned.epoch), owned.next_sequence, owned.lock_delay, owned.asked).hash(hasher);
        owned.pending.map(|claim| self.engine.claims_since(claim)).hash(hasher);
        owned.epoch_asked.hash(hasher);
        let contention = owned.contention.as_ref().map(|contention| {
            let alarmed = self.engine.timers.has(contention.until, Timer::BudgetOver(index));
            (contention.grants_left, self.view.until(contention.until).max(0), alarmed)
        });
        contention.hash(hasher);
    }

    fn request(&self, request: &Request, hasher: &mut impl Hasher) {
        (self.view.session(request.holder.session), request.holder.request, self.order(request.order)).hash(hasher);
        (request.hold_max, request.lock_delay, request.uses.len()).hash(hasher);
        for used in &request.uses {
            self.key_use(used, hasher);
        }
        match &request.kin {
            Kin::None => 0_u8.hash(hasher),
            Kin::Founder(secret) => (1_u8, secret).hash(hasher),
            Kin::Of(family) => (2_u8, family).hash(hasher),
        }
        let until = |at| self.view.until(at);
        match request.stage {
            Stage::Waiting(waiting) => {
                // What the wait may still be stretched to.
                let patient_until = until(request.since + self.engine.config.claim_patience).max(0);
                (0_u8, until(waiting.deadline), until(waiting.own_deadline), patient_until).hash(hasher);
                (waiting.patience as u8, waiting.place as u8, waiting.queues).hash(hasher);
            }
            Stage::Holding(hold) => (1_u8, until(hold.limit)).hash(hasher),
            Stage::Ending { reason, promise, delay, .. } => {
                (2_u8, reason, until(promise), delay as u8).hash(hasher);
            }
        }
    }

    fn key_use(&self, used: &KeyUse, hasher: &mut impl Hasher) {
        let token = used.token.map(|token| self.token_of(used.key, token));
        (used.key, used.asked, used.part as u8, used.mode, token).hash(hasher);
    }

    fn family(&self, family: &Family, hasher: &mut impl Hasher) {
        (family.secret, self.view.until(family.limit), &family.members, &family.waiting).hash(hasher);
        family.unclean.len().hash(hasher);
        for ((key, token), delay) in &family.unclean {
            (self.token_of(*key, *token), delay).hash(hasher);
        }
    }

    fn session(&self, id: SessionId, session: &Session, hasher: &mut impl Hasher) {
        let end = self.view.until(session.heard + self.engine.config.session_ttl);
        (end, self.view.seq(id, session.seq), self.view.until(session.promise).max(0)).hash(hasher);
        (session.link == Link::Connected, session.passed_over, session.last_request).hash(hasher);
    }

    fn token_of(&self, index: KeyIndex, token: Token) -> Option<(KeyIndex, (u64, u64))> {
        let key = self.engine.keys.get(index).ok()?;
        Some((index, self.token(&key.name, token)))
    }

    fn token(&self, key: &LockKey, token: Token) -> (u64, u64) {
        let epoch = Epoch(token.as_u64() >> Token::SEQUENCE_BITS);
        (self.view.epoch(key, epoch), token.as_u64() & u64::from(Token::SEQUENCE_MAX))
    }

    /// A request's place among all that there are.
    fn order(&self, order: u64) -> usize {
        self.engine.requests.iter().filter(|(_, request)| request.order < order).count()
    }
}

/// The places of a table that will be taken next, in that order, up to where each is at the end of the table.
pub(crate) fn vacant<T: Clone>(table: &Slab<T>, filler: &T) -> Vec<usize> {
    let mut table = table.clone();
    let mut places = Vec::new();
    while table.len() < table.capacity() {
        places.push(table.insert(filler.clone()));
    }
    let at_the_end = (0..table.len()).rev().zip(places.iter().rev()).take_while(|(end, place)| end == *place).count();
    places.truncate(places.len() - at_the_end);
    places
}
