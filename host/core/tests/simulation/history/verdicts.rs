//! I4, I5 and I7: whether one host was allowed to say what it said, by its ledger.

use turnstile_core::{HolderId, HolderSecret, LockKey, RejectReason, SessionId};

use super::families::covers;
use super::ledger::{Entry, Ledger, Stage};
use super::tokens::{Given, Tokens};
use crate::clock::micros;
use crate::log::Log;

/// What a look at the queues may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// An input may have taken away what was sure; what it brings is not yet there.
    StepBegins,
    StepIsOver,
}

impl Ledger {
    /// A grant: of a request that asked and waits, in its turn, with tokens of its own or of the hold that it joins.
    pub(super) fn grant(
        &mut self,
        holder: HolderId,
        told: &[(u64, u64)],
        secret: Option<HolderSecret>,
        tokens: &mut Tokens,
        log: &mut Log,
    ) {
        if !self.sessions.get(&holder.session).is_some_and(|known| known.connected) {
            log.violate("I4 grant without a stream", format!("{holder:?}"));
        }
        let granted: Vec<u64> = told.iter().map(|(token, _)| *token).collect();
        let Some(entry) = self.entries.get(&holder).filter(|entry| entry.asked.len() == granted.len()) else {
            return log.violate("I5 grant without a request", format!("{holder:?}"));
        };
        match &entry.stage {
            Stage::Held { tokens: before, lost: false, .. } if *before == granted => log.count("grants told again"),
            Stage::Held { tokens: before, .. } => {
                return log.violate("I5 granted twice", format!("{holder:?}: {before:?}, {granted:?}"));
            }
            Stage::Waiting { .. } => self.begin_hold(holder, &granted, secret, tokens, log),
        }
        let Some(entry) = self.entries.get(&holder) else { return };
        for (wanted, (token, barrier)) in entry.asked.iter().zip(told) {
            if !self.tokens_of(&wanted.key).any(|live| live == *barrier) {
                log.violate("I2 barrier of no hold", format!("{}: {token}, barrier {barrier}", wanted.key));
            }
            tokens.tell_barrier(&wanted.key, *token, *barrier, log);
        }
    }

    fn begin_hold(
        &mut self,
        holder: HolderId,
        granted: &[u64],
        secret: Option<HolderSecret>,
        tokens: &mut Tokens,
        log: &mut Log,
    ) {
        let Some(entry) = self.entries.get(&holder) else { return };
        let (asked, last) = (entry.asked.clone(), entry.queues.last().cloned());
        for (wanted, token) in asked.iter().zip(granted) {
            if self.is_joined(holder, &wanted.key, *token, tokens, log) {
                continue;
            }
            tokens.give(&wanted.key, *token, Given { mode: wanted.mode, by: self.run }, log);
            self.judge_turn(holder, &wanted.key, log);
            // A key that is pinned for the sake of another is granted late, if need be.
            let in_budget = self.ownerships.spend(&wanted.key, self.now);
            if !in_budget && last.as_ref() == Some(&wanted.key) {
                log.violate("I4 budget", format!("{}: token {token} for {holder:?}", wanted.key));
            }
        }
        let Some(entry) = self.entries.get_mut(&holder) else { return };
        let joined = entry.joins.as_ref().map(|joining| joining.secret);
        if joined.is_some() && joined != secret {
            log.violate("I5 joined another hold", format!("{holder:?}"));
        }
        let mut limit = self.now + entry.hold;
        if let Some(secret) = secret {
            let family = self.families.get(secret);
            if joined.is_some() && family.is_none() {
                log.violate("I5 joined a hold that is over", format!("{holder:?}"));
            }
            limit = family.map_or(limit, |family| family.limit.min(limit));
            let own = asked.iter().map(|wanted| wanted.key.clone()).zip(granted.iter().copied()).collect();
            self.families.join(secret, holder, own, limit);
            log.count(if joined.is_some() { "joined" } else { "offered" });
        }
        if asked.len() > 1 {
            log.count("several keys granted");
        }
        entry.stage = Stage::Held { tokens: granted.to_vec(), limit, lost: false };
    }

    /// Whether the token is that of a hold which the request joins.
    fn is_joined(&self, holder: HolderId, key: &LockKey, token: u64, tokens: &Tokens, log: &mut Log) -> bool {
        let Some(entry) = self.entries.get(&holder) else { return false };
        let family = entry.joins.as_ref().and_then(|joining| self.families.get(joining.secret));
        let Some(family) = family else { return false };
        // What others have added to the hold meanwhile may be joined too.
        if !family.tokens(key).contains(&token) {
            if entry.joins(key) && family.surely_has(key) {
                log.violate("I5 joined under another token", format!("{key}: {token} for {holder:?}"));
            }
            return false;
        }
        let wanted = entry.asked.iter().find(|wanted| wanted.key == *key);
        let held = tokens.given(key, token);
        if let (Some(wanted), Some(held)) = (wanted, held)
            && !covers(held.mode, wanted.mode)
        {
            log.violate("I1 joined beyond its mode", format!("{key}: {:?} for {:?}", held.mode, wanted.mode));
        }
        true
    }

    /// I4: nobody whose turn can come stands before it.
    fn judge_turn(&self, holder: HolderId, key: &LockKey, log: &mut Log) {
        let Some(order) = self.entries.get(&holder).map(|entry| entry.order) else { return };
        for (other, entry) in &self.entries {
            let Stage::Waiting { further } = entry.stage else { continue };
            let in_queue = entry.queues.iter().take(1 + further).any(|queue| queue == key) && !entry.joins(key);
            if entry.order < order && in_queue && self.is_live(other.session) {
                log.violate("I4 overtaken", format!("{key}: {other:?} by {holder:?}"));
            }
        }
    }

    /// I4: a key that the first in line has, and keeps for the sake of its further keys, stays.
    pub(super) fn judge_yield(&self, key: &LockKey, log: &mut Log) {
        for (holder, entry) in &self.entries {
            let Stage::Waiting { further } = entry.stage else { continue };
            let pinned = entry.queues.iter().take(further).any(|queue| queue == key);
            if pinned && self.is_live(holder.session) && !self.draining {
                log.violate("I4 pinned key yielded", format!("{key}, pinned by {holder:?}"));
            }
        }
        log.count("yields");
    }

    /// I5: a reject says what is true.
    pub(super) fn judge_reject(&self, holder: HolderId, reason: RejectReason, tokens: &Tokens, log: &mut Log) {
        let Some(entry) = self.entries.get(&holder).filter(|entry| entry.waits()) else {
            return log.violate("I5 rejected what does not wait", format!("{holder:?}: {reason:?}"));
        };
        let honest = match reason {
            RejectReason::Conflict => {
                entry.wait == 0 || entry.joins.as_ref().is_some_and(|joining| joining.out_of_order)
            }
            RejectReason::WaitTimeout => self.now >= entry.deadline,
            RejectReason::QueueFull => self.may_be_full(entry) || self.may_be_joined_by_many(holder, entry),
            RejectReason::SessionFull => {
                let own = || self.entries.iter().filter(|(other, _)| other.session == holder.session);
                own().filter(|(_, of)| of.waits()).count() > self.bounds.waiters_per_session_max
                    || own().filter(|(_, of)| !of.waits()).count() >= self.bounds.holds_per_session_max
            }
            RejectReason::KeysFull => self.bounds.keys_max < 100,
            RejectReason::StoreUnavailable => true,
            RejectReason::Draining => self.draining,
            RejectReason::Invalid | RejectReason::TokensExhausted => false,
            RejectReason::WaitHopeless => entry.fail_fast,
            RejectReason::NoSuchHold => self.may_be_over(entry),
            RejectReason::Upgrade => self.may_be_upgrade(entry, tokens),
        };
        log.count(reject_name(reason));
        if !honest {
            log.violate("I5 rejected for no reason", format!("{holder:?}: {reason:?}"));
        }
    }

    /// Whether so many may queue for one of the keys as are let in.
    fn may_be_full(&self, entry: &Entry) -> bool {
        let bound = self.bounds.waiters_per_key_max.min(entry.queue_max);
        let waiting = |key: &LockKey| {
            let others = self.entries.values().filter(|other| other.waits() && other.position(key).is_some());
            others.count() - 1
        };
        entry.queues.iter().any(|key| waiting(key) >= bound)
    }

    fn may_be_joined_by_many(&self, holder: HolderId, entry: &Entry) -> bool {
        entry.joins.as_ref().is_some_and(|joining| {
            let members = self.families.get(joining.secret).map_or(0, |family| family.members.len());
            members + self.waiting_to_join(joining.secret, holder) > self.bounds.joins_per_hold_max
        })
    }

    fn may_be_over(&self, entry: &Entry) -> bool {
        let Some(joining) = &entry.joins else { return false };
        let Some(family) = self.families.get(joining.secret) else { return true };
        !family.surely_lives() || joining.keys.iter().any(|key| !family.surely_has(key))
    }

    fn may_be_upgrade(&self, entry: &Entry, tokens: &Tokens) -> bool {
        let Some(family) = entry.joins.as_ref().and_then(|joining| self.families.get(joining.secret)) else {
            return false;
        };
        entry.asked.iter().any(|wanted| {
            let held = family.tokens(&wanted.key);
            let modes = held.iter().filter_map(|token| tokens.given(&wanted.key, *token));
            modes.into_iter().any(|held| !covers(held.mode, wanted.mode))
        })
    }

    /// Finds out whether a request that comes must be refused because there are too many others.
    pub(super) fn note_excess(&mut self, holder: HolderId) {
        let Some(entry) = self.entries.get(&holder) else { return };
        let others =
            || self.entries.iter().filter(|(other, _)| **other != holder).map(|(other, of)| (other.session, of));
        let own = || others().filter(|(session, _)| *session == holder.session).map(|(_, of)| of);
        let queue = |key: &LockKey| {
            let first = others().filter(|(_, of)| of.waits() && of.joins.is_none() && of.queues.first() == Some(key));
            first.count()
        };
        let longest = entry.queues.iter().filter(|key| !entry.joins(key)).map(queue).max().unwrap_or(0);
        let bounds = &self.bounds;
        let excess = if longest >= entry.queue_max.min(bounds.waiters_per_key_max) {
            Some("I7 queue")
        } else if own().filter(|of| of.waits()).count() >= bounds.waiters_per_session_max {
            Some("I7 waiters of a session")
        } else if own().filter(|of| of.surely_holds()).count() >= bounds.holds_per_session_max {
            Some("I7 holds of a session")
        } else if entry.joins.as_ref().is_some_and(|joining| {
            let family = self.families.get(joining.secret);
            let members = family.map_or(0, |family| family.members.values().filter(|member| member.sure).count());
            members + self.waiting_to_join(joining.secret, holder) > bounds.joins_per_hold_max
        }) {
            Some("I7 joins of a hold")
        } else {
            None
        };
        if let Some(entry) = self.entries.get_mut(&holder) {
            entry.excess = excess;
        }
    }

    /// Others that wait to join the hold of this secret.
    fn waiting_to_join(&self, secret: HolderSecret, but: HolderId) -> usize {
        let waiting = self.entries.iter().filter(|(other, of)| **other != but && of.waits());
        waiting.filter(|(_, of)| of.joins.as_ref().is_some_and(|joining| joining.secret == secret)).count()
    }

    /// I7, and hold limits.
    pub(super) fn judge_bounds(&self, log: &mut Log) {
        for (holder, entry) in &self.entries {
            if let Some(excess) = entry.excess {
                log.violate(excess, format!("{holder:?} was let in"));
            }
            if let Stage::Held { limit, lost: false, .. } = entry.stage
                && limit <= self.looked_at
            {
                log.violate("I5 held beyond its limit", format!("{holder:?} until {limit}"));
            }
        }
    }

    /// Finds out which requests surely stand in further queues from now on: they are first in line for all smaller
    /// keys, which are ours and free, and which the host has looked at since they are.
    pub(super) fn mark_queues(&mut self, when: Mark) {
        let mut marks = Vec::new();
        for (holder, entry) in &self.entries {
            let Stage::Waiting { further: before } = entry.stage else { continue };
            if entry.queues.len() < 2 || entry.joins.is_some() {
                continue;
            }
            let passes = |(place, key): &(usize, &LockKey)| self.surely_has(*holder, entry, key, *place < before);
            let further = entry.queues[..entry.queues.len() - 1].iter().enumerate().take_while(passes).count();
            marks.push((*holder, if when == Mark::StepBegins { further.min(before) } else { further }));
        }
        for (holder, now) in marks {
            if let Some(Stage::Waiting { further }) = self.entries.get_mut(&holder).map(|entry| &mut entry.stage) {
                *further = now;
            }
        }
    }

    fn surely_has(&self, holder: HolderId, entry: &Entry, key: &LockKey, had_before: bool) -> bool {
        let Some(owned) = self.ownerships.owned(key) else { return false };
        let lingering = self.lingering.get(key).copied().unwrap_or(0).max(self.ownerships.quarantined_until(key));
        let in_the_way = |other: &Entry| other.position(key).is_some() && (!other.waits() || other.order < entry.order);
        self.is_live(holder.session)
            && !self.draining
            && owned.lock_delay >= entry.lock_delay
            && (had_before || owned.contention.is_none())
            && lingering <= self.looked_at
            && !self.entries.values().any(in_the_way)
    }

    /// Whether the turn of the session's waiters can come, by what the host has heard of it.
    fn is_live(&self, session: SessionId) -> bool {
        let ttl = micros(self.bounds.session_ttl);
        self.sessions.get(&session).is_some_and(|known| known.connected && self.now - known.heard < ttl / 2)
    }

    /// The tokens of the holds of the key that may be left.
    fn tokens_of<'a>(&'a self, key: &'a LockKey) -> impl Iterator<Item = u64> + 'a {
        let held = self.entries.values().filter_map(|entry| match &entry.stage {
            Stage::Held { tokens, .. } => entry.position(key).and_then(|position| tokens.get(position)).copied(),
            Stage::Waiting { .. } => None,
        });
        held.chain(self.left.iter().filter(move |(of, _)| of == key).map(|(_, token)| *token))
    }
}

fn reject_name(reason: RejectReason) -> &'static str {
    match reason {
        RejectReason::Conflict => "reject: conflict",
        RejectReason::WaitTimeout => "reject: wait timeout",
        RejectReason::QueueFull => "reject: queue full",
        RejectReason::SessionFull => "reject: session full",
        RejectReason::KeysFull => "reject: keys full",
        RejectReason::StoreUnavailable => "reject: store unavailable",
        RejectReason::Draining => "reject: draining",
        RejectReason::Invalid => "reject: invalid",
        RejectReason::TokensExhausted => "reject: tokens exhausted",
        RejectReason::WaitHopeless => "reject: wait hopeless",
        RejectReason::NoSuchHold => "reject: no such hold",
        RejectReason::Upgrade => "reject: upgrade",
    }
}
