//! An engine on a bench: a clock to turn, inputs to give, and the commands they cause.

use std::time::Duration;

use turnstile_core::{
    Acquire, ClaimId, Command, Config, EndReason, Ending, Engine, Epoch, HeartbeatSeq, Input, Instant, KeyGrant,
    KeyRequest, LockKey, LostReason, Mode, RejectReason, RequestId, Resume, SessionId, SmallVec, Token, smallvec,
};

pub(crate) const TTL: Duration = Duration::from_secs(4);
/// What a session heard just now may believe under a long lease: the TTL less 2 %.
pub(crate) const VALID: Duration = Duration::from_millis(3_920);
pub(crate) const DELAY: Duration = Duration::from_secs(15);
/// The times of this bench do not go beyond this lease, unless a test is about leases.
pub(crate) const FAR: u64 = 10_000_000;

pub(crate) struct Bench {
    pub(crate) engine: Engine,
    now_ms: u64,
}

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn at(millis: u64) -> Instant {
    Instant::from_micros(millis * 1_000)
}

pub(crate) fn key(name: &str) -> LockKey {
    LockKey::parse(name).unwrap()
}

pub(crate) fn token(epoch: u64, sequence: u32) -> Token {
    Token::new(Epoch(epoch), sequence).unwrap()
}

/// The keys of an acquire: this one in exclusive mode.
pub(crate) fn only(name: &str) -> SmallVec<[KeyRequest; 1]> {
    smallvec![KeyRequest { key: key(name), mode: Mode::Exclusive }]
}

/// The keys of an acquire, in these modes.
pub(crate) fn keys(wanted: &[(&str, Mode)]) -> SmallVec<[KeyRequest; 1]> {
    wanted.iter().map(|(name, mode)| KeyRequest { key: key(name), mode: *mode }).collect()
}

pub(crate) fn limit(limit: u32) -> Mode {
    Mode::Limit(limit.try_into().unwrap())
}

/// An acquire of key `k` in this mode.
pub(crate) fn wants_as(request: u64, mode: Mode) -> Acquire {
    Acquire { keys: keys(&[("k", mode)]), ..wants(request) }
}

/// An acquire of these keys in exclusive mode.
pub(crate) fn wants_all(request: u64, names: &[&str]) -> Acquire {
    let wanted: Vec<(&str, Mode)> = names.iter().map(|name| (*name, Mode::Exclusive)).collect();
    Acquire { keys: keys(&wanted), ..wants(request) }
}

/// What a grant in exclusive mode brings.
pub(crate) fn alone(token: Token) -> SmallVec<[KeyGrant; 1]> {
    smallvec![KeyGrant { token, barrier: token }]
}

/// An acquire of key `k` that waits for a minute.
pub(crate) fn wants(request: u64) -> Acquire {
    Acquire { wait: ms(60_000), lock_delay: DELAY, ..Acquire::of_key(RequestId(request), key("k")) }
}

pub(crate) fn tries(request: u64) -> Acquire {
    Acquire { wait: Duration::ZERO, ..wants(request) }
}

impl Bench {
    /// With a lease, and nothing else.
    pub(crate) fn new(change: impl FnOnce(&mut Config)) -> Self {
        let mut bench = Self::without_lease(change);
        assert_eq!(bench.give(Input::LeaseRenewed { until: at(FAR) }), []);
        bench
    }

    pub(crate) fn without_lease(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config { session_ttl: TTL, ..Config::default() };
        change(&mut config);
        Self { engine: Engine::new(config), now_ms: 0 }
    }

    /// Sessions 1 to `sessions`, and key `k` owned under epoch 1 (by claim 1) and free.
    pub(crate) fn ready(sessions: u64) -> Self {
        Self::ready_with(sessions, |_| {})
    }

    pub(crate) fn ready_with(sessions: u64, change: impl FnOnce(&mut Config)) -> Self {
        let mut bench = Self::new(change);
        bench.open(sessions);
        assert_eq!(bench.acquire(1, Acquire { wait: ms(60_000), ..wants(1) }), [claim("k", 1)]);
        assert_eq!(bench.gain("k", 1, 1), [grant(1, 1, token(1, 0), 0, VALID)]);
        assert_eq!(bench.release(1, 1, Ending::Clean), []);
        bench
    }

    pub(crate) fn open(&mut self, sessions: u64) {
        for session in 1..=sessions {
            assert_eq!(self.give(Input::OpenSession { session: SessionId(session), seq: HeartbeatSeq(1) }), []);
        }
    }

    pub(crate) fn give(&mut self, input: Input) -> Vec<Command> {
        self.engine.handle(at(self.now_ms), input);
        self.take()
    }

    /// Turns the clock to `millis`, stopping at every deadline on the way.
    pub(crate) fn until(&mut self, millis: u64) -> Vec<Command> {
        let mut commands = Vec::new();
        while let Some(deadline) = self.engine.next_deadline().filter(|deadline| *deadline <= at(millis)) {
            self.engine.handle_timeout(deadline);
            commands.extend(self.take());
        }
        self.now_ms = millis;
        commands
    }

    /// Turns the clock to `millis` without calling the engine, as when the host was frozen.
    pub(crate) fn freeze(&mut self, millis: u64) {
        self.now_ms = millis;
    }

    /// Turns the clock to `millis` while the first `sessions` sessions send heartbeats, and drops their acks.
    pub(crate) fn beat(&mut self, millis: u64, sessions: u64) -> Vec<Command> {
        let mut commands = Vec::new();
        while self.now_ms < millis {
            commands.extend(self.until((self.now_ms + 1_000).min(millis)));
            for session in 1..=sessions {
                let seq = HeartbeatSeq(self.now_ms + 1);
                commands.extend(self.give(Input::Heartbeat { session: SessionId(session), seq }));
            }
        }
        commands.retain(|command| !matches!(command, Command::AckHeartbeat { .. }));
        commands
    }

    pub(crate) fn acquire(&mut self, session: u64, acquire: Acquire) -> Vec<Command> {
        self.give(Input::Acquire { session: SessionId(session), acquire })
    }

    pub(crate) fn release(&mut self, session: u64, request: u64, ending: Ending) -> Vec<Command> {
        self.give(Input::Release { session: SessionId(session), request: RequestId(request), ending })
    }

    pub(crate) fn cancel(&mut self, session: u64, request: u64) -> Vec<Command> {
        self.give(Input::Cancel { session: SessionId(session), request: RequestId(request) })
    }

    pub(crate) fn suspend(&mut self, session: u64) -> Vec<Command> {
        self.give(Input::SuspendSession { session: SessionId(session) })
    }

    pub(crate) fn resume(&mut self, session: u64, seq: u64, resume: Resume) -> Vec<Command> {
        self.give(Input::ResumeSession { session: SessionId(session), seq: HeartbeatSeq(seq), resume })
    }

    pub(crate) fn gain(&mut self, name: &str, claim: u64, epoch: u64) -> Vec<Command> {
        self.gain_with(name, claim, epoch, DELAY, 0)
    }

    pub(crate) fn gain_with(
        &mut self,
        name: &str,
        claim: u64,
        epoch: u64,
        lock_delay: Duration,
        until: u64,
    ) -> Vec<Command> {
        self.give(Input::OwnershipGained {
            key: key(name),
            claim: ClaimId(claim),
            epoch: Epoch(epoch),
            lock_delay,
            quarantined_until: at(until),
        })
    }

    pub(crate) fn contend(&mut self, name: &str) -> Vec<Command> {
        self.give(Input::OwnershipContended { key: key(name) })
    }

    fn take(&mut self) -> Vec<Command> {
        self.engine.check();
        std::iter::from_fn(|| self.engine.poll_command()).collect()
    }
}

/// A grant that answers the first heartbeat (the Hello) of its session.
pub(crate) fn grant(session: u64, request: u64, token: Token, waited_ms: u64, valid: Duration) -> Command {
    let (session, request) = (SessionId(session), RequestId(request));
    let keys = alone(token);
    Command::Grant { session, request, keys, secret: None, waited: ms(waited_ms), seq: HeartbeatSeq(1), valid }
}

/// A grant of several keys: their tokens and barriers.
pub(crate) fn grant_all(session: u64, request: u64, granted: &[(Token, Token)], waited_ms: u64) -> Command {
    let keys = granted.iter().map(|(token, barrier)| KeyGrant { token: *token, barrier: *barrier }).collect();
    let (session, request) = (SessionId(session), RequestId(request));
    Command::Grant { session, request, keys, secret: None, waited: ms(waited_ms), seq: HeartbeatSeq(1), valid: VALID }
}

/// A grant of key `k` beside others.
pub(crate) fn grant_beside(session: u64, request: u64, token: Token, barrier: Token) -> Command {
    grant_all(session, request, &[(token, barrier)], 0)
}

pub(crate) fn ack(session: u64, seq: u64, valid: Duration) -> Command {
    Command::AckHeartbeat { session: SessionId(session), seq: HeartbeatSeq(seq), valid }
}

pub(crate) fn reject(session: u64, request: u64, reason: RejectReason) -> Command {
    reject_with(session, request, reason, None, 0)
}

pub(crate) fn reject_with(
    session: u64,
    request: u64,
    reason: RejectReason,
    retry_ms: Option<u64>,
    queue: usize,
) -> Command {
    let (session, request) = (SessionId(session), RequestId(request));
    Command::Reject { session, request, reason, retry_after: retry_ms.map(ms), queue_length: queue }
}

pub(crate) fn lost(session: u64, request: u64, reason: LostReason) -> Command {
    Command::Lost { session: SessionId(session), request: RequestId(request), reason }
}

pub(crate) fn end(session: u64, reason: EndReason) -> Command {
    Command::EndSession { session: SessionId(session), reason }
}

/// A claim with the usual lock delay.
pub(crate) fn claim(name: &str, claim: u64) -> Command {
    claim_with(name, claim, DELAY, false)
}

pub(crate) fn claim_with(name: &str, claim: u64, lock_delay: Duration, new_epoch: bool) -> Command {
    Command::ClaimOwnership { key: key(name), claim: ClaimId(claim), lock_delay, new_epoch }
}

pub(crate) fn give_up(name: &str) -> Command {
    Command::YieldOwnership { key: key(name) }
}
