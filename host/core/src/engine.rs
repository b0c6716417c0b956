//! The lock engine: its public face, and the way of each input to the part that handles it.

use std::collections::{BTreeSet, VecDeque};

use crate::families::Families;
use crate::fault::{Fault, Step};
use crate::keys::{KeyIndex, Keys, Ownership};
use crate::mutation::Mutation;
use crate::promise::Lease;
use crate::requests::Requests;
use crate::sessions::Sessions;
use crate::timers::{Timer, Timers};
use crate::{ClaimId, Command, Config, Input, Instant, LockKey};

/// The lock table of one incarnation.
///
/// Inputs: [`handle`](Self::handle), [`handle_timeout`](Self::handle_timeout). Outputs:
/// [`poll_command`](Self::poll_command), [`next_deadline`](Self::next_deadline), [`fault`](Self::fault). The driver
/// empties `poll_command` after every input. The rest are getters, for metrics and tests.
///
/// `now` must not go back; an instant before the last one counts as the last one. Deadlines are acted on by
/// `handle_timeout` alone, and late is safe: so a driver that was frozen can first hand in what its clients sent in
/// the meantime, and only then let time take its course.
#[derive(Debug)]
#[cfg_attr(feature = "model", derive(Clone))]
pub struct Engine {
    pub(crate) config: Config,
    pub(crate) now: Instant,
    pub(crate) phase: Phase,
    pub(crate) lease: Lease,
    pub(crate) sessions: Sessions,
    pub(crate) requests: Requests,
    pub(crate) keys: Keys,
    pub(crate) timers: Timers,
    /// Keys whose next grant waits for the lease to be renewed.
    pub(crate) stalled: BTreeSet<KeyIndex>,
    pub(crate) commands: VecDeque<Command>,
    /// Keys that may have a next step.
    pub(crate) unsettled: BTreeSet<KeyIndex>,
    /// Their steps are being taken, or wait until several changes that belong together are made.
    pub(crate) settling: bool,
    pub(crate) families: Families,
    /// The place of the last request among all.
    pub(crate) last_order: u64,
    pub(crate) last_claim: u64,
    fault: Option<Fault>,
    mutation: Option<Mutation>,
}

/// Where the incarnation is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    Draining,
    Drained,
}

impl Engine {
    /// An engine that owns nothing and has no lease.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            now: Instant::default(),
            phase: Phase::Serving,
            lease: Lease::None,
            sessions: Sessions::default(),
            requests: Requests::default(),
            keys: Keys::default(),
            timers: Timers::default(),
            stalled: BTreeSet::new(),
            commands: VecDeque::new(),
            unsettled: BTreeSet::new(),
            settling: false,
            families: Families::default(),
            last_order: 0,
            last_claim: 0,
            fault: None,
            mutation: None,
        }
    }

    /// An engine that breaks one of its rules.
    #[cfg(feature = "mutations")]
    #[doc(hidden)]
    pub fn with_mutation(config: Config, mutation: Option<Mutation>) -> Self {
        Self { mutation, ..Self::new(config) }
    }

    /// Takes one input.
    pub fn handle(&mut self, now: Instant, input: Input) {
        self.step(now, |engine| engine.dispatch(input));
    }

    /// Acts on the deadlines that have come.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.step(now, Self::run_due);
    }

    /// The next command to carry out.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When [`Engine::handle_timeout`] must be called at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.fault.is_some() {
            return None;
        }
        let idle = self.keys.longest_idle().map(|(_, since)| since + self.config.idle_ownership);
        [self.timers.next(), idle].into_iter().flatten().min()
    }

    /// Why the engine has stopped, if it has: it takes no input any more and grants nothing. The driver must stop the
    /// host, loudly; what was promised runs out by itself, as when a host is killed.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Sessions, connected or suspended.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Keys tracked, in whatever state.
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// Keys that are ours in the store.
    pub fn owned_key_count(&self) -> usize {
        self.keys.owned()
    }

    /// Whether the key is ours in the store, as far as was told.
    pub fn owns(&self, key: &LockKey) -> bool {
        let key = self.keys.find(key).and_then(|index| self.keys.get(index).ok());
        key.is_some_and(|key| matches!(key.ownership, Ownership::Owned(_)))
    }

    /// Requests that wait.
    pub fn waiter_count(&self) -> usize {
        self.requests.waiters()
    }

    /// Holds, those told `Lost` and not yet over among them.
    pub fn hold_count(&self) -> usize {
        self.requests.holds()
    }

    /// How many requests wait for this key.
    pub fn queue_length(&self, key: &LockKey) -> usize {
        self.keys.find(key).and_then(|index| self.keys.get(index).ok()).map_or(0, |key| key.waiters())
    }

    /// Whether `mutation` is on; never, in what users run.
    pub(crate) fn mutated(&self, mutation: Mutation) -> bool {
        cfg!(feature = "mutations") && self.mutation == Some(mutation)
    }

    pub(crate) fn emit(&mut self, command: Command) {
        self.commands.push_back(command);
    }

    pub(crate) fn next_claim(&mut self) -> ClaimId {
        self.last_claim += 1;
        ClaimId(self.last_claim)
    }

    fn step(&mut self, now: Instant, work: impl FnOnce(&mut Self) -> Step) {
        if self.fault.is_some() {
            return;
        }
        self.now = self.now.max(now);
        if let Err(fault) = work(self) {
            // A step that went wrong half-way must not grant: what it said is taken back.
            self.commands.clear();
            self.fault = Some(fault);
            return;
        }
        if self.phase == Phase::Draining && self.keys.len() == 0 {
            self.phase = Phase::Drained;
            self.emit(Command::Drained);
        }
    }

    fn dispatch(&mut self, input: Input) -> Step {
        match input {
            Input::OpenSession { session, seq } => self.open_session(session, seq),
            Input::Heartbeat { session, seq } => self.hear_session(session, seq),
            Input::SuspendSession { session } => self.suspend_session(session),
            Input::ResumeSession { session, seq, resume } => self.resume_session(session, seq, resume),
            Input::Acquire { session, acquire } => self.acquire(session, acquire),
            Input::Cancel { session, request } => self.cancel(session, request),
            Input::Release { session, request, ending } => self.release(session, request, ending),
            Input::OwnershipGained { key, claim, epoch, lock_delay, quarantined_until } => {
                self.ownership_gained(key, claim, epoch, lock_delay, quarantined_until)
            }
            Input::OwnershipQueued { key, claim } => self.ownership_queued(&key, claim),
            Input::OwnershipRefused { key, claim } => self.ownership_refused(&key, claim),
            Input::OwnershipContended { key } => self.ownership_contended(&key),
            Input::OwnershipLost { key } => self.ownership_lost(&key),
            Input::LeaseRenewed { until } => self.lease_renewed(until),
            Input::LeaseLost => self.lease_lost(),
            Input::ForceRelease { key, token, delay } => self.force_release(&key, token, delay),
            Input::Drain => self.drain(),
        }
    }

    fn run_due(&mut self) -> Step {
        while let Some(timer) = self.timers.pop_due(self.now) {
            match timer {
                Timer::PromiseOver(request) => self.promise_over(request)?,
                Timer::QuarantineOver(key) => self.quarantine_over(key)?,
                Timer::LingeringOver(key) => self.lingering_over(key)?,
                Timer::SessionSilent(session) => self.session_silent(session)?,
                Timer::HoldLimit(request) => self.hold_limit(request)?,
                Timer::WaitOver(request) => self.wait_over(request)?,
                Timer::BudgetOver(key) => self.pump(key)?,
            }
        }
        while let Some((key, since)) = self.keys.longest_idle() {
            if since + self.config.idle_ownership > self.now {
                break;
            }
            self.yield_ownership(key)?;
            self.pump(key)?;
        }
        Ok(())
    }
}
