//! What one run of a host was told and what it said: its sessions, and the requests that wait and hold there. From this
//! alone `verdicts` decides what the host was allowed to say.

use std::collections::{BTreeMap, BTreeSet};

use turnstile_core::{
    Acquire, Command, Config, HolderId, HolderSecret, Input, KeyRequest, LockKey, Reentry, RequestId, Resume, SessionId,
};

use super::families::Families;
use super::ownership::Ownerships;
use super::tokens::Tokens;
use super::verdicts::Mark;
use crate::clock::micros;
use crate::log::Log;
use crate::wire::Run;

/// One run of a host, by its own clock.
pub(crate) struct Ledger {
    pub(super) run: Run,
    pub(super) bounds: Config,
    pub(super) now: u64,
    /// When it last looked at its deadlines.
    pub(super) looked_at: u64,
    pub(super) draining: bool,
    pub(super) sessions: BTreeMap<SessionId, Known>,
    pub(super) entries: BTreeMap<HolderId, Entry>,
    pub(super) families: Families,
    pub(super) ownerships: Ownerships,
    /// Until when work under holds that ended uncleanly may go on; later than the host believes, or the same.
    pub(super) lingering: BTreeMap<LockKey, u64>,
    /// Tokens of holds that ended by the present input: while it is carried out, a barrier may still count them.
    pub(super) left: Vec<(LockKey, u64)>,
    last_order: u64,
}

/// A session.
pub(super) struct Known {
    pub(super) connected: bool,
    pub(super) heard: u64,
}

/// A request that waits or holds.
pub(super) struct Entry {
    /// In the order of the acquire.
    pub(super) asked: Vec<KeyRequest>,
    /// Its keys in the order of their names: that in which it queues.
    pub(super) queues: Vec<LockKey>,
    pub(super) wait: u64,
    pub(super) lock_delay: u64,
    pub(super) hold: u64,
    pub(super) fail_fast: bool,
    pub(super) queue_max: usize,
    pub(super) joins: Option<Joining>,
    /// Its place among all requests of the host.
    pub(super) order: u64,
    /// When its own wait ends.
    pub(super) deadline: u64,
    /// The bound that was surely reached already when it came.
    pub(super) excess: Option<&'static str>,
    pub(super) stage: Stage,
}

/// What a request that brings a secret could join when it came.
pub(super) struct Joining {
    pub(super) secret: HolderSecret,
    pub(super) keys: BTreeSet<LockKey>,
    /// It adds a key that does not sort behind all that the family has.
    pub(super) out_of_order: bool,
}

pub(super) enum Stage {
    /// It surely stands in the queues of its first key and of so many further ones, and stood there before the present
    /// step.
    Waiting { further: usize },
    Held {
        /// By key, as in `asked`.
        tokens: Vec<u64>,
        limit: u64,
        lost: bool,
    },
}

impl Ledger {
    pub(crate) fn new(run: Run, bounds: Config) -> Self {
        Self {
            run,
            bounds,
            now: 0,
            looked_at: 0,
            draining: false,
            sessions: BTreeMap::new(),
            entries: BTreeMap::new(),
            families: Families::default(),
            ownerships: Ownerships::default(),
            lingering: BTreeMap::new(),
            left: Vec::new(),
            last_order: 0,
        }
    }

    /// The tokens of a key's holds that were not told to end: what an operator sees.
    pub(crate) fn tokens_held(&self, key: &LockKey) -> Vec<u64> {
        let held = self.entries.values().filter_map(|entry| match &entry.stage {
            Stage::Held { tokens, lost: false, .. } => entry.position(key).map(|position| tokens[position]),
            _ => None,
        });
        held.collect()
    }

    /// The host acts on its deadlines.
    pub(crate) fn look(&mut self, now: u64) {
        self.now = self.now.max(now);
        self.looked_at = self.now;
        self.left.clear();
    }

    /// The host takes an input.
    pub(crate) fn hear(&mut self, now: u64, input: &Input) {
        self.now = self.now.max(now);
        self.left.clear();
        self.ownerships.hear(self.now, input, self.bounds.handoff_budget);
        match input {
            Input::OpenSession { session, .. } => {
                self.sessions.insert(*session, Known { connected: true, heard: self.now });
            }
            Input::Heartbeat { session, .. } => {
                if let Some(known) = self.sessions.get_mut(session).filter(|known| known.connected) {
                    known.heard = self.now;
                }
            }
            Input::SuspendSession { session } => {
                if let Some(known) = self.sessions.get_mut(session) {
                    known.connected = false;
                }
            }
            Input::ResumeSession { session, resume, .. } => self.resume(*session, resume),
            Input::Acquire { session, acquire } => {
                let holder = HolderId { session: *session, request: acquire.request };
                if !self.entries.contains_key(&holder) {
                    self.enter(holder, acquire);
                    self.note_excess(holder);
                }
            }
            Input::Cancel { session, request } | Input::Release { session, request, .. } => {
                self.leave(HolderId { session: *session, request: *request });
            }
            Input::Drain => self.draining = true,
            _ => {}
        }
        self.mark_queues(Mark::StepBegins);
    }

    /// The host says something: judged, then written down.
    pub(crate) fn say(&mut self, command: &Command, tokens: &mut Tokens, log: &mut Log) {
        match command {
            Command::Grant { session, request, keys, secret, .. } => {
                let holder = HolderId { session: *session, request: *request };
                let told: Vec<(u64, u64)> = keys.iter().map(|key| (key.token.as_u64(), key.barrier.as_u64())).collect();
                self.grant(holder, &told, *secret, tokens, log);
            }
            Command::Reject { session, request, reason, .. } => {
                let holder = HolderId { session: *session, request: *request };
                self.judge_reject(holder, *reason, tokens, log);
                self.entries.remove(&holder);
            }
            Command::Lost { session, request, .. } => self.lose(HolderId { session: *session, request: *request }),
            Command::EndSession { session, .. } => {
                self.sessions.remove(session);
                for holder in self.requests_of(*session) {
                    self.leave(holder);
                }
            }
            Command::YieldOwnership { key } => self.judge_yield(key, log),
            _ => {}
        }
        self.ownerships.say(command);
    }

    /// The step is over.
    pub(crate) fn rest(&mut self, log: &mut Log) {
        self.judge_bounds(log);
        self.mark_queues(Mark::StepIsOver);
    }

    fn resume(&mut self, session: SessionId, resume: &Resume) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        (known.connected, known.heard) = (true, self.now);
        let name = |request: RequestId| HolderId { session, request };
        for (request, _) in &resume.releases {
            self.leave(name(*request));
        }
        let waits = |request: RequestId| resume.waiters.iter().any(|acquire| acquire.request == request);
        for holder in self.requests_of(session) {
            if !waits(holder.request) && !resume.holds.contains(&holder.request) {
                self.leave(holder);
            }
        }
        let mut unknown = Vec::new();
        for acquire in &resume.waiters {
            let holder = name(acquire.request);
            let patience = if acquire.wait.is_zero() { self.bounds.claim_patience } else { acquire.wait };
            let until = self.now + micros(patience);
            match self.entries.get_mut(&holder) {
                Some(Entry { stage: Stage::Held { lost: false, .. }, .. }) => {}
                Some(Entry { stage: Stage::Waiting { .. }, deadline, .. }) => *deadline = until.min(*deadline),
                // Neither the grant nor its loss was heard of: the hold never was.
                Some(_) => {
                    self.leave(holder);
                    unknown.push(acquire);
                }
                None => unknown.push(acquire),
            }
        }
        for acquire in unknown {
            self.enter(name(acquire.request), acquire);
        }
    }

    fn enter(&mut self, holder: HolderId, acquire: &Acquire) {
        if !self.sessions.contains_key(&holder.session) {
            return;
        }
        let asked: Vec<KeyRequest> = acquire.keys.to_vec();
        let mut queues: Vec<LockKey> = asked.iter().map(|wanted| wanted.key.clone()).collect();
        queues.sort();
        let joins = match acquire.reentry {
            Reentry::Join(secret) => Some(self.joining(secret, &queues)),
            Reentry::None | Reentry::Offer(_) => None,
        };
        self.last_order += 1;
        let entry = Entry {
            asked,
            queues,
            wait: micros(acquire.wait),
            lock_delay: micros(acquire.lock_delay.min(self.bounds.lock_delay_max)),
            hold: micros(acquire.hold.unwrap_or(self.bounds.hold_max).min(self.bounds.hold_max)),
            fail_fast: acquire.fail_fast,
            queue_max: acquire.queue_max.map_or(usize::MAX, |max| max as usize),
            joins,
            order: self.last_order,
            deadline: self.now + micros(acquire.wait.min(self.bounds.wait_max)),
            excess: None,
            stage: Stage::Waiting { further: 0 },
        };
        self.entries.insert(holder, entry);
    }

    fn joining(&self, secret: HolderSecret, queues: &[LockKey]) -> Joining {
        let Some(family) = self.families.get(secret) else {
            return Joining { secret, keys: BTreeSet::new(), out_of_order: false };
        };
        let had = family.keys();
        let added = queues.iter().filter(|key| !had.contains(key));
        let out_of_order = added.clone().any(|key| had.last().is_some_and(|largest| key < largest));
        let keys = queues.iter().filter(|key| had.contains(key)).cloned().collect();
        Joining { secret, keys, out_of_order }
    }

    fn lose(&mut self, holder: HolderId) {
        match self.entries.get_mut(&holder).map(|entry| &mut entry.stage) {
            Some(Stage::Held { lost, .. }) => {
                *lost = true;
                self.families.lose(holder);
            }
            Some(Stage::Waiting { .. }) => self.leave(holder),
            None => {}
        }
    }

    /// However the request ended: it waits and holds no more.
    fn leave(&mut self, holder: HolderId) {
        let Some(entry) = self.entries.remove(&holder) else { return };
        if let Stage::Held { tokens, .. } = entry.stage {
            self.left.extend(entry.asked.into_iter().map(|wanted| wanted.key).zip(tokens));
            // The delay of whoever was in its family may count as well.
            let of_family = self.families.leave(holder);
            let delay = if of_family { micros(self.bounds.lock_delay_max) } else { entry.lock_delay };
            for key in entry.queues {
                let until = self.lingering.entry(key).or_default();
                *until = (self.now + delay).max(*until);
            }
        }
    }

    fn requests_of(&self, session: SessionId) -> Vec<HolderId> {
        self.entries.keys().filter(|holder| holder.session == session).copied().collect()
    }
}

impl Entry {
    /// The place of the key in the acquire.
    pub(super) fn position(&self, key: &LockKey) -> Option<usize> {
        self.asked.iter().position(|wanted| wanted.key == *key)
    }

    pub(super) fn waits(&self) -> bool {
        matches!(self.stage, Stage::Waiting { .. })
    }

    /// It was not told that its hold is lost.
    pub(super) fn surely_holds(&self) -> bool {
        matches!(self.stage, Stage::Held { lost: false, .. })
    }

    pub(super) fn joins(&self, key: &LockKey) -> bool {
        self.joins.as_ref().is_some_and(|joining| joining.keys.contains(key))
    }
}
