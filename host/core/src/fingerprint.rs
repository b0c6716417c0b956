//! What of the engine's state decides how it goes on, for a model checker: states that differ in nothing else are one.
//!
//! Instants count from now, names that only count are shown as a [`View`] sees them, places in tables by their order.
//! Left out are: what only reports tell (since when, how long, how often), what [`Engine::check`] derives from the rest
//! (timers, counters), and which vacant place of a table is taken next.

use std::hash::{Hash, Hasher};

use crate::keys::{Key, KeyIndex, Owned, Ownership};
use crate::promise::Lease;
use crate::requests::{Request, RequestIndex, Stage};
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
        debug_assert!(self.commands.is_empty() && self.held_back.is_none(), "not between inputs");
        (self.phase as u8, self.fault().is_some()).hash(hasher);
        match self.lease {
            Lease::None => None,
            Lease::Until(until) => Some(view.until(until).max(0)),
        }
        .hash(hasher);
        let looking = Looking { engine: self, view };
        self.keys.len().hash(hasher);
        for (index, key) in self.keys.iter() {
            looking.key(index, key, hasher);
        }
        for (index, since) in self.keys.walk_idle() {
            (looking.place_of_key(index), view.until(since + self.config.idle_ownership)).hash(hasher);
        }
        self.requests.iter().count().hash(hasher);
        for (_, request) in self.requests.iter() {
            looking.request(request, hasher);
        }
        let mut sessions: Vec<_> = self.sessions.iter().map(|(id, session)| (view.session(id), id, session)).collect();
        sessions.sort_unstable_by_key(|(name, ..)| *name);
        sessions.len().hash(hasher);
        for (name, id, session) in sessions {
            name.hash(hasher);
            looking.session(id, session, hasher);
        }
    }

    /// How many claims were made after this one.
    #[doc(hidden)]
    pub fn claims_since(&self, claim: ClaimId) -> u64 {
        self.last_claim - claim.0
    }
}

struct Looking<'a, V> {
    engine: &'a Engine,
    view: &'a V,
}

impl<V: View> Looking<'_, V> {
    fn key(&self, index: KeyIndex, key: &Key, hasher: &mut impl Hasher) {
        key.name.hash(hasher);
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
        key.holder.map(|holder| self.place(holder)).hash(hasher);
        key.quarantine.map(|until| self.view.until(until)).hash(hasher);
        key.last_token.map(|token| self.token(&key.name, token)).hash(hasher);
        self.engine.stalled.contains(&index).hash(hasher);
        if let Some(queue) = &key.queue {
            queue.lock_delay.hash(hasher);
            for waiter in queue.iter() {
                self.place(waiter).hash(hasher);
            }
        }
        u32::MAX.hash(hasher);
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
        (self.view.session(request.holder.session), request.holder.request).hash(hasher);
        (self.place_of_key(request.key), request.mode, request.lock_delay, request.hold_max).hash(hasher);
        let until = |at| self.view.until(at);
        match request.stage {
            Stage::Waiting(waiting) => {
                let deadlines = (until(waiting.deadline), until(waiting.own_deadline));
                (0_u8, deadlines, waiting.patience as u8, waiting.place as u8).hash(hasher);
            }
            Stage::Holding(hold) => (1_u8, self.told(request, hold.token), until(hold.limit)).hash(hasher),
            Stage::Ending { hold, reason, promise } => {
                (2_u8, self.told(request, hold.token), reason, until(promise)).hash(hasher);
            }
        }
    }

    fn session(&self, id: SessionId, session: &Session, hasher: &mut impl Hasher) {
        let end = self.view.until(session.heard + self.engine.config.session_ttl);
        (end, self.view.seq(id, session.seq), self.view.until(session.promise).max(0)).hash(hasher);
        (session.link == Link::Connected, session.passed_over, session.last_request).hash(hasher);
    }

    /// The token of a hold, which may be told again.
    fn told(&self, request: &Request, token: Token) -> Option<(u64, u64)> {
        let key = self.engine.keys.get(request.key).ok()?;
        Some(self.token(&key.name, token))
    }

    fn token(&self, key: &LockKey, token: Token) -> (u64, u64) {
        let epoch = Epoch(token.as_u64() >> Token::SEQUENCE_BITS);
        (self.view.epoch(key, epoch), token.as_u64() & u64::from(Token::SEQUENCE_MAX))
    }

    fn place(&self, index: RequestIndex) -> usize {
        self.engine.requests.iter().take_while(|(other, _)| *other < index).count()
    }

    fn place_of_key(&self, index: KeyIndex) -> usize {
        self.engine.keys.iter().take_while(|(other, _)| *other < index).count()
    }
}
