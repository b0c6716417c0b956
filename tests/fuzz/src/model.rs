//! What clients may believe, worked out from the inputs and commands alone and without a look into the engine: the
//! grounds on which I1, I2, I3 and I5 are decided once more.

use std::collections::BTreeMap;
use std::time::Duration;

use turnstile_core::{
    Acquire, ClaimId, Command, Config, EndReason, Ending, ForcedDelay, HeartbeatSeq, HolderId, HolderSecret, Input,
    Instant, KeyGrant, KeyRequest, LockKey, LostReason, Mode, Reentry, RejectReason, RequestId, Resume, SessionId,
    Token,
};

/// Looks at every input before the engine does, and at every command it then gives. Panics when one breaks an invariant.
#[derive(Debug)]
pub struct Model {
    now: Instant,
    session_ttl: Duration,
    lock_delay_max: Duration,
    lease: Option<Instant>,
    sessions: BTreeMap<SessionId, Session>,
    keys: BTreeMap<LockKey, Key>,
    /// Every hold that still counts, and some that do not any more.
    holds: Vec<Hold>,
    draining: bool,
    /// What the input at hand allows beyond the rules.
    allowed: Allowed,
}

#[derive(Debug)]
struct Session {
    connected: bool,
    heard: Instant,
    /// When each heartbeat was sent; nothing takes time on its way here.
    sent: BTreeMap<HeartbeatSeq, Instant>,
    last_request: Option<RequestId>,
    waiters: BTreeMap<RequestId, Acquire>,
}

#[derive(Debug, Default)]
struct Key {
    owned: bool,
    claim: Option<ClaimId>,
    /// The lock delay that the store remembers.
    remembered: Duration,
    /// The end of a predecessor's lock delays.
    not_before: Instant,
    last_token: Option<Token>,
}

#[derive(Debug)]
struct Hold {
    holder: HolderId,
    /// Holds with one secret are one.
    secret: Option<HolderSecret>,
    keys: Vec<(LockKey, Mode, Token)>,
    lock_delay: Duration,
    /// Until when the client believes, if it is not told more.
    promise: Instant,
    told_lost: bool,
    /// Its end, once the client has told it; then the instant at which nothing of it counts any more.
    over: Option<Instant>,
}

/// Second answers that are right all the same.
#[derive(Debug, Default)]
struct Allowed {
    /// The id was used before.
    reject: Option<HolderId>,
    /// Waiters that a resume does not list: one may be turned away with the hold that it was to join.
    rejects: Vec<HolderId>,
    /// Listed by a resume, as a waiter or as a hold.
    grants: Vec<HolderId>,
    losses: Vec<HolderId>,
}

impl Hold {
    fn counts_until(&self) -> Instant {
        self.over.unwrap_or(self.promise + self.lock_delay)
    }

    fn is_same_hold(&self, secret: Option<HolderSecret>) -> bool {
        secret.is_some() && self.secret == secret
    }

    fn of_key(&self, key: &LockKey) -> impl Iterator<Item = (Mode, Token)> {
        self.keys.iter().filter(move |(name, ..)| name == key).map(|(_, mode, token)| (*mode, *token))
    }
}

impl Model {
    /// Nothing has happened yet.
    pub fn new(config: &Config) -> Self {
        Self {
            now: Instant::default(),
            session_ttl: config.session_ttl,
            lock_delay_max: config.lock_delay_max,
            lease: None,
            sessions: BTreeMap::new(),
            keys: BTreeMap::new(),
            holds: Vec::new(),
            draining: false,
            allowed: Allowed::default(),
        }
    }

    /// Requests that are neither answered nor withdrawn.
    pub fn waiters(&self) -> usize {
        self.sessions.values().map(|session| session.waiters.len()).sum()
    }

    /// Sessions that have not ended.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Time has come to `now`.
    pub fn turn(&mut self, now: Instant) {
        self.now = now;
        self.allowed = Allowed::default();
        self.holds.retain(|hold| hold.counts_until() > now || hold.over.is_none());
    }

    /// The engine is about to take this.
    pub fn input(&mut self, now: Instant, input: &Input) {
        self.turn(now);
        match input {
            Input::OpenSession { session, seq } => {
                let sent = BTreeMap::from([(*seq, now)]);
                let (last_request, waiters) = (None, BTreeMap::new());
                let opened = Session { connected: true, heard: now, sent, last_request, waiters };
                assert!(self.sessions.insert(*session, opened).is_none(), "sessions are opened once");
            }
            Input::Heartbeat { session, seq } => {
                if let Some(session) = self.sessions.get_mut(session) {
                    let is_news = session.sent.last_key_value().is_none_or(|(last, _)| last < seq);
                    if session.connected && is_news {
                        session.heard = now;
                    }
                    session.sent.entry(*seq).or_insert(now);
                }
            }
            Input::SuspendSession { session } => {
                if let Some(session) = self.sessions.get_mut(session) {
                    session.connected = false;
                }
            }
            Input::ResumeSession { session, seq, resume } => self.resume(*session, *seq, resume),
            Input::Acquire { session, acquire } => self.acquire(*session, acquire),
            Input::Cancel { session, request } => {
                self.end(HolderId { session: *session, request: *request }, Ending::Unsent);
            }
            Input::Release { session, request, ending } => {
                self.end(HolderId { session: *session, request: *request }, *ending);
            }
            Input::ForceRelease { key, token, delay } => self.force(key, *token, *delay),
            Input::Drain => self.draining = true,
            Input::LeaseRenewed { until } => self.lease = self.lease.max(Some(*until)),
            Input::LeaseLost => {
                self.lease = None;
                self.keys.values_mut().for_each(|key| (key.owned, key.claim) = (false, None));
            }
            Input::OwnershipGained { .. }
            | Input::OwnershipQueued { .. }
            | Input::OwnershipRefused { .. }
            | Input::OwnershipContended { .. }
            | Input::OwnershipLost { .. } => self.store_told(input),
        }
    }

    fn store_told(&mut self, input: &Input) {
        match input {
            Input::OwnershipGained { key, claim, lock_delay, quarantined_until, .. } => {
                let key = self.keys.entry(key.clone()).or_default();
                if key.claim == Some(*claim) {
                    (key.owned, key.claim, key.remembered) = (true, None, *lock_delay);
                    key.not_before = key.not_before.max(*quarantined_until);
                }
            }
            Input::OwnershipQueued { key, claim } => {
                let key = self.keys.entry(key.clone()).or_default();
                key.owned &= key.claim != Some(*claim);
            }
            Input::OwnershipRefused { key, claim } => {
                let key = self.keys.entry(key.clone()).or_default();
                key.claim = key.claim.filter(|pending| pending != claim);
            }
            Input::OwnershipLost { key } => {
                let key = self.keys.entry(key.clone()).or_default();
                if key.owned {
                    (key.owned, key.claim) = (false, None);
                }
            }
            _ => {}
        }
    }

    fn acquire(&mut self, id: SessionId, acquire: &Acquire) {
        let holder = HolderId { session: id, request: acquire.request };
        // One that was told Lost may have ended by itself since.
        let held = self.holds.iter().any(|hold| hold.holder == holder && hold.over.is_none() && !hold.told_lost);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.last_request.is_none_or(|last| last < acquire.request) {
            session.last_request = Some(acquire.request);
            session.waiters.insert(acquire.request, acquire.clone());
        } else if !held && !session.waiters.contains_key(&acquire.request) {
            self.allowed.reject = Some(holder);
        }
    }

    fn is_held(&self, holder: HolderId) -> bool {
        self.holds.iter().any(|hold| hold.holder == holder && hold.over.is_none())
    }

    /// The client ends a request, whatever it has come to.
    fn end(&mut self, holder: HolderId, ending: Ending) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&holder.session) else { return };
        session.waiters.remove(&holder.request);
        for hold in self.holds.iter_mut().filter(|hold| hold.holder == holder && hold.over.is_none()) {
            // One that was told Lost may have ended by itself before.
            let end = if hold.told_lost { now.min(hold.promise) } else { now };
            hold.over = Some(match ending {
                Ending::Clean | Ending::Unsent => now,
                Ending::Unclean => end + hold.lock_delay,
            });
        }
    }

    fn resume(&mut self, id: SessionId, seq: HeartbeatSeq, resume: &Resume) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.sent.entry(seq).or_insert(now);
        (session.connected, session.heard) = (true, now);
        let known: Vec<RequestId> = session.waiters.keys().copied().collect();
        let holder = |request| HolderId { session: id, request };
        for (request, ending) in &resume.releases {
            self.end(holder(*request), *ending);
        }
        let is_waiter = |request: RequestId| resume.waiters.iter().any(|acquire| acquire.request == request);
        for request in &resume.holds {
            self.allowed.losses.push(holder(*request));
            // A client that believes in a hold does not wait.
            if known.contains(request) {
                self.end(holder(*request), Ending::Unsent);
            }
        }
        self.allowed.rejects =
            known.iter().filter(|request| !is_waiter(**request)).map(|request| holder(*request)).collect();
        let listed = |request: RequestId| is_waiter(request) || resume.holds.contains(&request);
        let held = self.holds.iter().filter(|hold| hold.holder.session == id && hold.over.is_none());
        let held: Vec<(RequestId, bool)> = held.map(|hold| (hold.holder.request, hold.told_lost)).collect();
        for request in known.into_iter().filter(|request| !listed(*request)) {
            self.end(holder(request), Ending::Unsent);
        }
        for (request, told_lost) in held {
            if !listed(request) {
                self.end(holder(request), Ending::Unclean);
            } else if is_waiter(request) && told_lost {
                // Neither the grant nor its loss arrived.
                self.end(holder(request), Ending::Unsent);
            }
        }
        for acquire in &resume.waiters {
            self.wait_again(holder(acquire.request), acquire);
        }
    }

    /// A resume lists a waiter.
    fn wait_again(&mut self, holder: HolderId, acquire: &Acquire) {
        if self.is_held(holder) {
            return self.allowed.grants.push(holder);
        }
        let Some(session) = self.sessions.get_mut(&holder.session) else { return };
        session.last_request = session.last_request.max(Some(holder.request));
        session.waiters.entry(holder.request).or_insert_with(|| acquire.clone());
    }

    /// An operator who knows that nothing works on a key any more answers for it.
    fn force(&mut self, key: &LockKey, token: Option<Token>, delay: ForcedDelay) {
        if delay == ForcedDelay::Keep {
            return;
        }
        for hold in &mut self.holds {
            if hold.of_key(key).any(|(_, of_hold)| token.is_none_or(|token| token == of_hold) || hold.over.is_some()) {
                hold.lock_delay = Duration::ZERO;
                hold.over = hold.over.map(|over| over.min(self.now));
            }
        }
        if let Some(key) = self.keys.get_mut(key) {
            key.not_before = Instant::default();
        }
    }

    /// The engine gave this.
    pub fn command(&mut self, command: &Command) {
        match command {
            Command::Grant { session, request, keys, secret, seq, valid, .. } => {
                let holder = HolderId { session: *session, request: *request };
                let promise = self.promise(*session, *seq, *valid);
                self.grant(holder, keys, *secret, promise);
            }
            Command::Reject { session, request, reason, .. } => {
                self.reject(HolderId { session: *session, request: *request }, *reason);
            }
            Command::Lost { session, request, reason } => {
                self.lost(HolderId { session: *session, request: *request }, *reason);
            }
            Command::AckHeartbeat { session, seq, valid } => {
                let promise = self.promise(*session, *seq, *valid);
                let told = |hold: &&mut Hold| hold.holder.session == *session && !hold.told_lost;
                for hold in self.holds.iter_mut().filter(told).filter(|hold| hold.over.is_none()) {
                    hold.promise = hold.promise.max(promise);
                }
            }
            Command::EndSession { session, reason } => self.end_session(*session, *reason),
            Command::ClaimOwnership { key, claim, .. } => {
                let key = self.keys.entry(key.clone()).or_default();
                assert!(key.claim.is_none(), "two claims are on their way at once: {key:?}");
                key.claim = Some(*claim);
            }
            Command::YieldOwnership { key } => {
                let key = self.keys.entry(key.clone()).or_default();
                (key.owned, key.claim) = (false, None);
            }
            Command::Drained => {
                assert!(self.draining && self.keys.values().all(|key| !key.owned), "drained, and owns a key");
            }
        }
    }

    /// Until when the client will believe (I3).
    fn promise(&self, session: SessionId, seq: HeartbeatSeq, valid: Duration) -> Instant {
        let session = &self.sessions.get(&session).expect("a session that is over is promised something");
        let sent = *session.sent.get(&seq).expect("an answer to a heartbeat that was never sent");
        let promise = sent + valid;
        if promise > self.now {
            assert!(valid < self.session_ttl, "I3: {valid:?} is beyond the session's TTL");
            assert!(self.lease >= Some(promise), "I3: {promise:?} is beyond the lease {:?}", self.lease);
        }
        promise
    }

    fn grant(&mut self, holder: HolderId, grants: &[KeyGrant], secret: Option<HolderSecret>, promise: Instant) {
        let session = self.sessions.get_mut(&holder.session).expect("a grant to a session that is over");
        assert!(session.connected, "{holder:?} is granted without a stream");
        let Some(acquire) = session.waiters.remove(&holder.request) else { return self.grant_again(holder, promise) };
        assert!(!self.draining, "{holder:?} is granted during a drain");
        assert_eq!(acquire.keys.len(), grants.len(), "{holder:?} is granted other keys than it asked for");
        let asked = match acquire.reentry {
            Reentry::None => None,
            Reentry::Offer(asked) | Reentry::Join(asked) => Some(asked),
        };
        assert_eq!(secret, asked, "{holder:?} is told another secret");
        let lock_delay = acquire.lock_delay.min(self.lock_delay_max);
        for (request, grant) in acquire.keys.iter().zip(grants) {
            self.grant_key(holder, &acquire, request, *grant, lock_delay);
        }
        let keys = acquire.keys.iter().zip(grants);
        let keys = keys.map(|(request, grant)| (request.key.clone(), request.mode, grant.token)).collect();
        self.holds.push(Hold { holder, secret, keys, lock_delay, promise, told_lost: false, over: None });
    }

    fn grant_key(
        &mut self,
        holder: HolderId,
        acquire: &Acquire,
        request: &KeyRequest,
        grant: KeyGrant,
        lock_delay: Duration,
    ) {
        let (now, name) = (self.now, &request.key);
        let joined = match acquire.reentry {
            Reentry::Join(secret) => self.holds.iter().filter(|hold| hold.is_same_hold(Some(secret))).any(|hold| {
                // One that nobody believes in any more, and that still stands, may be joined.
                let stands = hold.over.is_none() || hold.counts_until() > now;
                stands && hold.of_key(name).any(|(_, token)| token == grant.token)
            }),
            Reentry::None | Reentry::Offer(_) => false,
        };
        let key = self.keys.entry(name.clone()).or_default();
        if !joined {
            assert!(key.owned, "{holder:?} is granted {name}, which is not ours");
            assert!(key.remembered >= lock_delay, "the store does not remember the lock delay of {holder:?}");
            assert!(
                key.not_before <= now,
                "I1: {holder:?} is granted {name} before a predecessor's quarantine is over"
            );
            assert!(key.last_token < Some(grant.token), "I2: {holder:?} has token {:?} of {name}", grant.token);
            key.last_token = Some(grant.token);
        }
        let secret = match acquire.reentry {
            Reentry::None => None,
            Reentry::Offer(secret) | Reentry::Join(secret) => Some(secret),
        };
        let others = self.holds.iter().filter(|hold| hold.counts_until() > now && !hold.is_same_hold(secret));
        // Several requests that share one hold count once.
        let mut modes = BTreeMap::new();
        for hold in others {
            for (mode, token) in hold.of_key(name) {
                modes.insert(token, mode);
                assert!(
                    grant.barrier <= token || hold.over.is_some() || hold.promise <= now,
                    "a barrier shuts out {hold:?}"
                );
            }
        }
        assert!(grant.barrier <= grant.token, "{holder:?} shuts itself out");
        let modes: Vec<Mode> = modes.into_values().collect();
        assert!(compatible(request.mode, &modes), "I1: {holder:?} is granted {request:?} beside {modes:?}: {self:#?}");
    }

    /// A grant that is told again tells nothing new.
    fn grant_again(&mut self, holder: HolderId, promise: Instant) {
        assert!(self.allowed.grants.contains(&holder), "I5: {holder:?} is granted twice, or after its end");
        let hold = self.holds.iter_mut().find(|hold| hold.holder == holder && hold.over.is_none());
        let hold = hold.expect("I5: a grant after the end of the hold");
        hold.promise = hold.promise.max(promise);
    }

    fn reject(&mut self, holder: HolderId, reason: RejectReason) {
        if self.allowed.reject == Some(holder) {
            self.allowed.reject = None;
            return assert_eq!(reason, RejectReason::Invalid, "an id is used again");
        }
        let session = self.sessions.get_mut(&holder.session).expect("a reject to a session that is over");
        let waited = session.waiters.remove(&holder.request).is_some();
        assert!(
            waited || self.allowed.rejects.contains(&holder),
            "I5: {holder:?} is rejected ({reason:?}), and waits for nothing"
        );
        self.allowed.rejects.retain(|other| *other != holder);
    }

    fn lost(&mut self, holder: HolderId, reason: LostReason) {
        assert!(self.sessions.contains_key(&holder.session), "a loss told to a session that is over");
        let hold = self.holds.iter_mut().find(|hold| hold.holder == holder && hold.over.is_none());
        let told_before = self.allowed.losses.contains(&holder);
        match hold {
            Some(hold) if !hold.told_lost => hold.told_lost = true,
            _ => assert!(told_before, "I5: {holder:?} is lost ({reason:?}), and was no hold"),
        }
    }

    fn end_session(&mut self, id: SessionId, reason: EndReason) {
        let session = self.sessions.remove(&id);
        assert_eq!(session.is_none(), reason == EndReason::Unknown, "{id:?} ends for {reason:?}");
        if let Some(session) = session.filter(|_| reason == EndReason::Expired) {
            assert!(session.heard + self.session_ttl <= self.now, "{id:?} ends before its time");
        }
    }
}

/// Whether a hold in `mode` may be there beside holds in the modes of `others` (design: "mode").
fn compatible(mode: Mode, others: &[Mode]) -> bool {
    match mode {
        Mode::Exclusive => others.is_empty(),
        Mode::Shared => others.iter().all(|other| *other == Mode::Shared),
        Mode::Limit(own) => {
            let limits = others.iter().map(|other| match other {
                Mode::Limit(limit) => limit.get() as usize,
                Mode::Exclusive | Mode::Shared => 0,
            });
            limits.chain([own.get() as usize]).min().is_some_and(|limit| others.len() < limit)
        }
    }
}
