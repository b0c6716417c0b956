//! The connection, as the worker sees it: made, given up, made again to the next endpoint.

use std::sync::Arc;
use std::time::Duration;

use turnstile_core::{Instant, Token};

use super::lease::{Member, believed};
use super::link::{Errand, Established, Fault, Link, Meta, Who, establish, waited_for};
use super::worker::{Message, Phase, Worker};
use crate::clock;
use crate::store::Event;

/// Pauses between attempts to connect.
pub(super) const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The connection.
pub(super) enum Line {
    Down { from: Instant },
    Connecting,
    Up(Box<Link>),
}

impl Worker {
    pub(super) fn connect(&mut self, now: Instant) {
        let who = match &self.phase {
            Phase::Left => return,
            Phase::Joining { from } if now < *from => {
                self.line = Line::Down { from: *from };
                return;
            }
            Phase::Joining { .. } => match random_name() {
                Ok(name) => Who::New(name),
                Err(error) => {
                    self.failing(&format!("no randomness: {error}"));
                    self.line = Line::Down { from: now + PAUSE_MAX };
                    return;
                }
            },
            Phase::Member(member) => Who::Member(member.me.clone()),
        };
        let Some(endpoint) = self.config.endpoints.get(self.endpoint % self.config.endpoints.len().max(1)) else {
            return;
        };
        self.generation += 1;
        let errand = Errand {
            config: self.config.clone(),
            layout: (*self.layout).clone(),
            endpoint: endpoint.clone(),
            generation: self.generation,
            who,
            witness: self.witness,
            messages: self.messages.clone(),
        };
        self.line = Line::Connecting;
        let (messages, generation) = (self.messages.clone(), self.generation);
        tokio::spawn(async move {
            let established = Box::new(establish(errand).await);
            let _ = messages.send(Message::Linked { generation, established });
        });
    }

    /// Tries the next endpoint after a pause.
    pub(super) fn disconnect(&mut self, reason: &str) {
        if matches!(self.line, Line::Down { .. }) {
            return;
        }
        self.failing(reason);
        self.line = Line::Down { from: clock::now() + self.next_pause() };
    }

    /// Before the next endpoint is tried: longer each time until a beat lands again.
    pub(super) fn next_pause(&mut self) -> Duration {
        self.endpoint = self.endpoint.wrapping_add(1);
        // Not all hosts at once.
        let pause = self.pause.mul_f64(0.5 + f64::from(random_byte()) / 512.0);
        // A lease must not run out in a pause.
        let max = match self.phase {
            Phase::Member(_) => (self.config.lease_ttl / 10).min(PAUSE_MAX),
            Phase::Joining { .. } | Phase::Left => PAUSE_MAX,
        };
        self.pause = (self.pause * 2).min(max);
        pause
    }

    pub(super) fn linked(&mut self, established: Result<Established, Fault>) {
        let now = clock::now();
        if matches!(self.phase, Phase::Left) {
            // It ended while we connected: a lease that was made runs out.
            self.line = Line::Down { from: now };
            return;
        }
        let established = match established {
            Ok(established) => established,
            Err(fault) => return self.not_linked(&fault),
        };
        let Established { link, me, meta, hosts, listed, anchor, witness } = established;
        match (&mut self.phase, anchor) {
            (Phase::Joining { .. }, Some(anchor)) => {
                if let Err(reason) = self.above_floor(meta, witness.revision) {
                    self.disconnect(&reason);
                    self.line = Line::Down { from: now + PAUSE_MAX };
                    return;
                }
                tracing::info!(
                    store = "etcd",
                    incarnation = me.name,
                    epoch_base = meta.epoch_base,
                    "joined as a new incarnation"
                );
                let leased_until = anchor + believed(self.config.lease_ttl);
                self.epoch_base = meta.epoch_base;
                self.phase = Phase::Member(Member::new(me, meta, leased_until));
                // From when its key was written; the rest of the way may have taken long.
                self.next_beat = anchor + self.beat_interval();
                self.report(Event::LeaseRenewed { until: leased_until });
            }
            (Phase::Member(member), None) if member.me.name == me.name => {
                member.beating = false;
                // Most of the TTL may be gone in connecting.
                self.next_beat = now;
                self.learn(meta);
            }
            _ => return self.disconnect("the incarnation has changed"),
        }
        self.witness.join(witness);
        self.line = Line::Up(Box::new(link));
        self.hosts.list(hosts, listed, now);
        self.reaper.somebody_died(now);
        self.jobs.retry_now();
        self.look_at_all_queued();
        self.ask_who_waits();
    }

    /// What was called into a watch that was not there, is read.
    pub(super) fn ask_who_waits(&self) {
        let (Line::Up(link), Phase::Member(member)) = (&self.line, &self.phase) else { return };
        let (client, me) = (link.client.clone(), member.me.clone());
        let (config, layout) = (self.config.clone(), Arc::clone(&self.layout));
        let (messages, generation) = (self.messages.clone(), self.generation);
        tokio::spawn(async move {
            let keys = waited_for(&config, &layout, client, &me).await;
            let _ = messages.send(Message::WaitedFor { generation, keys });
        });
    }

    pub(super) fn not_linked(&mut self, fault: &Fault) {
        match fault {
            Fault::Unavailable(reason) | Fault::Ambiguous(reason) => {
                self.disconnect(reason);
                // Whoever waits for an answer has waited for an attempt.
                self.fail_claims(reason, clock::now());
            }
            Fault::LeaseGone | Fault::WentBack(_) => self.handle(fault),
        }
    }

    /// After the cluster went back, epochs must not repeat.
    pub(super) fn above_floor(&self, meta: Meta, revision: i64) -> Result<(), String> {
        let next = meta.epoch_base.saturating_add(revision.unsigned_abs());
        if next > self.epoch_floor {
            return Ok(());
        }
        let floor = self.epoch_floor;
        Err(format!(
            "the cluster went back to epoch {next}, and epochs up to {floor} were possible: nothing is granted; stop \
             every host, set store.epoch_base to {} or more on all of them, and start them again",
            floor.saturating_mul(2).min(Token::EPOCH_MAX.0 / 2)
        ))
    }
}

/// Nobody guesses it, and it never comes again.
fn random_name() -> Result<String, getrandom::Error> {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}

fn random_byte() -> u8 {
    let mut byte = [0];
    // Without randomness there is no jitter.
    let _ = getrandom::fill(&mut byte);
    u8::from_be_bytes(byte)
}
