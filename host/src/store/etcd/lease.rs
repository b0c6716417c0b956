//! Our own liveness: beats, its loss, and its end in order.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};
use turnstile_core::Instant;

use super::decide::{Want, millis_up};
use super::hosts::Hosts;
use super::layout::{HostValue, json};
use super::line::{Line, PAUSE_FIRST};
use super::link::{Fault, Link, Meta, Witness, parse_meta};
use super::reaper::Reaper;
use super::sweep::Sweep;
use super::table::Table;
use super::txn::Me;
use super::worker::{Message, Phase, What, Worker};
use crate::clock;
use crate::store::{Event, Operation, StoreError};

/// Beats per TTL: four may fail in a row.
const BEATS_PER_TTL: u32 = 5;
/// Keys that are given up at once when leaving.
const LEAVE_MAX: usize = 256;

/// A registered incarnation.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) me: Me,
    pub(super) meta: Meta,
    /// Believes in its lease until then.
    pub(super) leased_until: Instant,
    beats: u64,
    pub(super) beating: bool,
    revoking: bool,
}

impl Member {
    /// One whose key was written just now.
    pub(super) fn new(me: Me, meta: Meta, leased_until: Instant) -> Self {
        Self { me, meta, leased_until, beats: 0, beating: false, revoking: false }
    }
}

impl Worker {
    /// A write through the cluster's consensus, guarded by our key's being there. Keepalives of the lease in the cluster
    /// are the connection's own business; nothing that we believe rests on them.
    pub(super) fn beat(&mut self, now: Instant) {
        self.next_beat = now + self.beat_interval();
        let ttl_ms = millis_up(self.config.lease_ttl);
        let (Line::Up(_), Phase::Member(member)) = (&self.line, &mut self.phase) else { return };
        if member.beating {
            return;
        }
        member.beating = true;
        member.beats += 1;
        let (key, lease) = (self.layout.host(&member.me.name), member.me.lease);
        let value = HostValue { ttl_ms, beat: member.beats };
        let txn =
            Txn::new().when([Compare::create_revision(key.clone(), CompareOp::Equal, member.me.created)]).and_then([
                TxnOp::put(key, json(&value), Some(PutOptions::new().with_lease(lease))),
                TxnOp::put(self.layout.pulse(), "", None),
                TxnOp::get(self.layout.meta(), None),
            ]);
        self.send(txn, What::Beat { anchor: clock::now() });
    }

    pub(super) fn beaten(&mut self, anchor: Instant, response: Result<TxnResponse, Fault>) -> Result<(), Fault> {
        let until = anchor + believed(self.config.lease_ttl);
        let Some(member) = self.member_mut() else { return Ok(()) };
        member.beating = false;
        let response = response?;
        if !response.succeeded() {
            return Err(Fault::LeaseGone);
        }
        let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
        self.witness.beaten = self.witness.beaten.max(revision);
        self.working();
        // A connection that only comes and goes earns no quick return.
        let stood = |link: &Link| clock::now() >= link.since + self.beat_interval();
        if self.link().is_some_and(stood) {
            self.pause = PAUSE_FIRST;
        }
        if let Some(TxnOpResponse::Get(meta)) = response.op_responses().get(2)
            && let Some(kv) = meta.kvs().first()
        {
            let epoch_base = parse_meta(&self.layout, kv)?.epoch_base;
            self.learn(Meta { epoch_base, revision: kv.mod_revision() });
        }
        let Some(member) = self.member_mut() else { return Ok(()) };
        // A late answer is older news.
        if until > member.leased_until {
            member.leased_until = until;
            self.report(Event::LeaseRenewed { until });
        }
        self.sweep();
        Ok(())
    }

    pub(super) fn beat_interval(&self) -> Duration {
        self.config.lease_ttl / BEATS_PER_TTL
    }

    /// Ends the lease when everything is given up that was to be.
    pub(super) fn leave_if_done(&mut self, now: Instant) {
        if !self.pending.only_the_end() || !self.jobs.is_empty() {
            return;
        }
        let keys = self.table.to_leave(LEAVE_MAX, now);
        if !keys.is_empty() {
            for key in keys {
                self.start(key, Want::Yield);
            }
            return self.pump(now);
        }
        let (Line::Up(link), Phase::Member(member)) = (&self.line, &mut self.phase) else { return };
        if member.revoking {
            return;
        }
        member.revoking = true;
        let (mut client, name, lease) = (link.client.clone(), member.me.name.clone(), member.me.lease);
        let (messages, timeout) = (self.messages.clone(), self.config.request_timeout);
        tokio::spawn(async move {
            let late = || Fault::Ambiguous(format!("no answer within {timeout:?}"));
            let work = async { client.lease_revoke(lease).await.map_err(|error| Fault::of_write(&error)) };
            let outcome = tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| Err(late())).map(|_| ());
            let _ = messages.send(Message::Revoked { name, outcome });
        });
    }

    /// Nobody can be told that we go, and our lease has run out long ago for all who can.
    pub(super) fn leave_if_forgotten(&mut self, now: Instant) {
        let Phase::Member(member) = &self.phase else { return };
        let forgotten = now > member.leased_until + self.config.lease_ttl;
        if forgotten && !matches!(self.line, Line::Up(_)) && self.pending.wants_to_end() {
            self.left();
        }
    }

    pub(super) fn revoked(&mut self, outcome: Result<(), Fault>) {
        match outcome {
            Ok(()) => self.left(),
            Err(fault) => {
                if let Some(member) = self.member_mut() {
                    member.revoking = false;
                }
                self.handle(&fault);
            }
        }
    }

    pub(super) fn left(&mut self) {
        if let Some(member) = self.member() {
            tracing::info!(store = "etcd", incarnation = member.me.name, "ended the lease");
        }
        self.phase = Phase::Left;
        self.line = Line::Down { from: clock::now() };
        self.table = Table::default();
        let jobs = std::mem::take(&mut self.jobs);
        let pending = self.pending.take_claims().into_iter().filter_map(|operation| match operation {
            Operation::Claim { key, claim, .. } => Some((key, claim)),
            Operation::Yield { .. } | Operation::EndLease => None,
        });
        for (key, claim) in jobs.claims().chain(pending) {
            self.report(Event::Failed {
                key,
                claim,
                error: StoreError::Rejected("this host has ended its lease".into()),
            });
        }
        self.pending.ended();
        self.report(Event::LeaseEnded);
    }

    /// Acts on a fault of a request.
    pub(super) fn handle(&mut self, fault: &Fault) {
        match fault {
            Fault::Unavailable(reason) | Fault::Ambiguous(reason) => self.disconnect(reason),
            Fault::LeaseGone => {
                if let Phase::Member(member) = std::mem::replace(&mut self.phase, Phase::Joining { from: clock::now() })
                {
                    if member.revoking {
                        // It is what we asked for.
                        self.phase = Phase::Member(member);
                        return self.left();
                    }
                    tracing::error!(
                        store = "etcd",
                        incarnation = member.me.name,
                        "the lease is lost: no keepalive reached the cluster for its TTL, or somebody revoked it"
                    );
                    self.forget();
                }
                // At once, unless that has helped nothing before.
                let again = self.pause > PAUSE_FIRST;
                let pause = self.next_pause();
                self.line = Line::Down { from: clock::now() + if again { pause } else { Duration::ZERO } };
            }
            Fault::WentBack(reason) => self.went_back(reason),
        }
    }

    /// All that anybody granted in the lost time, and what it remembered of lock delays, must have passed before we
    /// grant anything from what is there now.
    pub(super) fn went_back(&mut self, reason: &str) {
        let known = self.epoch_base.saturating_add(self.witness.revision.unsigned_abs());
        self.epoch_floor = self.epoch_floor.max(known);
        let ttl = self.config.lease_ttl.max(self.hosts.longest_ttl()).max(self.longest_ttl);
        let wait = ttl + Duration::from_millis(self.largest_lock_delay_ms);
        tracing::error!(
            store = "etcd",
            reason,
            wait_ms = wait.as_millis(),
            known_epoch = self.epoch_floor,
            "the cluster was restored or replaced: nothing is granted until the wait is over"
        );
        let from = clock::now() + wait;
        self.generation += 1;
        let was_member = matches!(std::mem::replace(&mut self.phase, Phase::Joining { from }), Phase::Member(_));
        self.witness = Witness::default();
        self.line = Line::Down { from };
        if was_member {
            self.forget();
        }
    }

    /// What we had under the lost lease is nothing to us any more.
    pub(super) fn forget(&mut self) {
        // What the streams of now still bring is of another life.
        self.generation += 1;
        self.longest_ttl = self.longest_ttl.max(self.hosts.longest_ttl());
        self.table = Table::default();
        self.hosts = Hosts::default();
        self.reaper = Reaper::default();
        self.sweep = Sweep::default();
        self.relisting = false;
        let jobs = std::mem::take(&mut self.jobs);
        self.report(Event::LeaseLost);
        for (key, claim) in jobs.claims() {
            self.report(Event::Failed { key, claim, error: StoreError::Unavailable("the lease was lost".into()) });
        }
        self.answer_all("the lease was lost", StoreError::Unavailable);
    }

    /// Answers what waits without carrying it out.
    pub(super) fn answer_all(&mut self, reason: &str, error: fn(String) -> StoreError) {
        for answer in self.pending.answers(|| error(reason.to_owned())) {
            if answer == Event::LeaseEnded {
                self.phase = Phase::Left;
            }
            self.report(answer);
        }
    }
}

/// How long a lease is believed in: 2 % less than the TTL, for the 1 % by which either clock may be off.
pub(super) fn believed(ttl: Duration) -> Duration {
    ttl * 98 / 100
}
