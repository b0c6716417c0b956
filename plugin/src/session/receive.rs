//! What the host says, item by item.

use core::time::Duration;

use prost::Message;
use turnstile_protocol::v1::{self, RejectReason, server_item::Item};

use super::farewells::Farewell;
use super::handover::Decline;
use super::link::{Identity, Link};
use super::{FAREWELLS_MAX, Granted, Hold, Loss, MARGIN, Outcome, Rejection, Session, StreamToken, Waiter};
use crate::clock::Instant;

impl Session {
    /// A message came on a stream. Those of older streams are dropped. `now` is when it is *read*, not when it came.
    pub fn receive(&mut self, now: Instant, stream: StreamToken, message: &[u8]) {
        if self.link.stream() != Some(stream) {
            return;
        }
        let Ok(message) = v1::ServerMessage::decode(message) else { return };
        for item in message.items.into_iter().filter_map(|item| item.item) {
            match item {
                Item::Welcome(welcome) => self.on_welcome(now, welcome),
                _ if !self.link.is_live() => {}
                Item::Grant(grant) => self.on_grant(now, &grant),
                Item::Reject(reject) => self.on_reject(now, &reject),
                Item::Lost(lost) => self.on_lost(lost.id),
                Item::HeartbeatAck(ack) => self.on_ack(now, &ack),
                Item::GoAway(_) => self.draining = true,
            }
        }
        // A busy session would otherwise run into its bound between two heartbeats.
        if self.farewells.len() > FAREWELLS_MAX / 4 && self.pulse.is_answered() {
            self.send_heartbeat(now);
        }
    }

    fn on_welcome(&mut self, now: Instant, welcome: v1::Welcome) {
        let Link::Greeting { stream, since, resuming, .. } = self.link else { return };
        let resumed = resuming && welcome.resumed;
        if !resumed {
            self.forget_session(now);
            self.store.over();
        }
        self.abandoned = None;
        let heartbeat = Duration::from_millis(welcome.heartbeat_ms.max(1).into());
        self.identity = Some(Identity {
            incarnation: welcome.incarnation,
            session_id: welcome.session_id,
            ttl: Duration::from_millis(welcome.ttl_ms.into()),
            heartbeat,
            heard: since,
        });
        self.failures = 0;
        self.able = true;
        self.pulse.answered(self.pulse.last_seq());
        self.link = Link::Live { stream, next_heartbeat: now + heartbeat, suspected: None };
        // Renews the holds at once; and the answer tells whether the host has a lease in its store.
        self.send_heartbeat(now);
        if resumed {
            for item in self.farewells.untold(self.pulse.last_seq()) {
                self.outbox.push(item);
            }
        }
        let mut waiters = core::mem::take(&mut self.waiters);
        for waiter in waiters.values_mut() {
            waiter.patient = true;
            if !waiter.sent {
                self.send_acquire(now, waiter);
            }
        }
        waiters.append(&mut self.waiters);
        self.waiters = waiters;
    }

    fn on_grant(&mut self, now: Instant, grant: &v1::Grant) {
        let promise = self.promise(grant.heartbeat_seq, grant.valid_ms);
        let Some(waiter) = self.waiters.remove(&grant.id) else {
            // Cancelled while the grant was under way, and the host has been told; or never asked for.
            if !self.holds.contains_key(&grant.id) && !self.farewells.contains(grant.id) {
                self.say_farewell(grant.id, Farewell::Release(v1::Ending::Unsent));
            }
            return;
        };
        self.backoff.reset();
        self.store.over();
        let Some(granted) = Granted::parse(&waiter.acquire, grant) else {
            // Which locks these are, nobody can tell.
            self.say_farewell(grant.id, Farewell::Release(v1::Ending::Unsent));
            return self.reject(waiter.owner, Rejection::Invalid);
        };
        match promise {
            Some(promise) if now < promise => self.begin_hold(now, grant.id, waiter, promise, granted),
            // It spent its validity in a socket.
            _ => {
                self.ids.remove(&waiter.owner);
                self.say_farewell(grant.id, Farewell::Release(v1::Ending::Unsent));
                self.ask_again(now, waiter);
            }
        }
    }

    fn begin_hold(&mut self, now: Instant, id: u64, waiter: Waiter, promise: Instant, granted: Granted) {
        let owner = waiter.owner;
        let limit = match waiter.acquire.hold_ms {
            0 => Instant::from_micros(u64::MAX),
            hold_ms => now + Duration::from_millis(hold_ms.into()),
        };
        let tokens = granted.tokens.clone();
        self.holds.insert(id, Hold { owner, tokens, promise, limit, lost: false, unused: Some(Box::new(waiter)) });
        self.outcomes.push_back((owner, Outcome::Granted(granted)));
    }

    fn on_reject(&mut self, now: Instant, reject: &v1::Reject) {
        if reject.reason() == RejectReason::Draining {
            self.draining = true;
            // It stays, and asks the next host; under a new number, since this host has used up the old one.
            if let Some(waiter) = self.waiters.remove(&reject.id) {
                self.enqueue(now, waiter);
            }
            return;
        }
        let Some(waiter) = self.waiters.remove(&reject.id) else { return };
        let retry_after = Some(Duration::from_millis(reject.retry_after_ms.into())).filter(|after| !after.is_zero());
        let rejection = match reject.reason() {
            RejectReason::StoreUnavailable | RejectReason::Draining => {
                self.store.refused(now, waiter.keys().next().unwrap_or_default());
                return self.decline(waiter, Decline::NoStore);
            }
            RejectReason::NoSuchHold => return self.decline(waiter, Decline::NoSuchHold),
            // Asked when its time was up, it was a try for the host.
            RejectReason::Conflict if waiter.has_waited(now) => Rejection::WaitOver { retry_after },
            RejectReason::Conflict => Rejection::Conflict,
            RejectReason::WaitTimeout => Rejection::WaitOver { retry_after },
            RejectReason::WaitHopeless => Rejection::Hopeless { retry_after },
            RejectReason::QueueFull
            | RejectReason::SessionFull
            | RejectReason::KeysFull
            | RejectReason::TokensExhausted => Rejection::Busy { retry_after },
            RejectReason::Upgrade => Rejection::Upgrade,
            // Also a reason that only a newer host knows: it is there, and refuses, so `allow` must not let through.
            RejectReason::Invalid | RejectReason::Unsupported | RejectReason::Unspecified => Rejection::Invalid,
        };
        self.reject(waiter.owner, rejection);
    }

    fn on_lost(&mut self, id: u64) {
        let Some(hold) = self.holds.get_mut(&id).filter(|hold| !hold.lost) else { return };
        hold.lost = true;
        if hold.unused.is_none() {
            self.losses.push_back((hold.owner, Loss::ByHost));
        }
    }

    fn on_ack(&mut self, now: Instant, ack: &v1::HeartbeatAck) {
        let Some(promise) = self.promise(ack.seq, ack.valid_ms) else { return };
        self.backoff.reset();
        self.able = now < promise;
        for hold in self.holds.values_mut().filter(|hold| !hold.lost) {
            hold.promise = hold.promise.max(promise);
        }
    }

    /// The host has processed heartbeat `seq` and says how long its word is good: until when we may act on it.
    fn promise(&mut self, seq: u64, valid_ms: u32) -> Option<Instant> {
        let sent = self.pulse.answered(seq)?;
        self.farewells.cover(seq);
        if let Some(identity) = &mut self.identity {
            identity.heard = identity.heard.max(sent);
        }
        let valid = Duration::from_millis(valid_ms.into());
        Some(sent + valid.saturating_sub(MARGIN.min(valid / 4)))
    }
}
