//! An engine under load: clients that ask and release, a store that gives every key at once, and time that goes by.
#![allow(dead_code, reason = "each bench uses its part")]
#![allow(clippy::expect_used, reason = "clippy does not see that these are helpers of benches")]

use std::collections::VecDeque;
use std::time::Duration;

use turnstile_core::{
    Acquire, Command, Config, Ending, Engine, Epoch, HeartbeatSeq, Input, Instant, KeyRequest, LockKey, Mode,
    RequestId, SessionId,
};

/// Clients.
const SESSIONS: u64 = 64;

/// What a request asks for.
pub(crate) type Want = Vec<(LockKey, Mode)>;

/// A request, by whose it is.
pub(crate) type Asked = (SessionId, RequestId);

pub(crate) struct Load {
    engine: Engine,
    now_us: u64,
    requests: u64,
    grants: u64,
}

impl Load {
    /// Nobody asks for anything yet, and nothing runs out however long the bench takes.
    pub(crate) fn new() -> Self {
        let for_ever = Duration::from_secs(10_000_000);
        let engine = Engine::new(Config {
            session_ttl: for_ever,
            idle_ownership: for_ever,
            waiters_max: 2_000_000,
            waiters_per_session_max: 2_000_000,
            waiters_per_key_max: 2_000_000,
            keys_max: 2_000_000,
            ..Config::default()
        });
        let mut load = Self { engine, now_us: 0, requests: 0, grants: 0 };
        load.give(Input::LeaseRenewed { until: Instant::default() + for_ever });
        for session in (0..SESSIONS).map(SessionId) {
            load.give(Input::OpenSession { session, seq: HeartbeatSeq(1) });
        }
        load
    }

    /// Asks. Whoever asks next is another client.
    pub(crate) fn acquire(&mut self, want: &[(LockKey, Mode)]) -> Asked {
        self.requests += 1;
        let asked = (SessionId(self.requests % SESSIONS), RequestId(self.requests));
        let keys = want.iter().map(|(key, mode)| KeyRequest { key: key.clone(), mode: *mode });
        let acquire = Acquire {
            request: asked.1,
            keys: keys.collect(),
            wait: Duration::from_secs(600),
            hold: None,
            lock_delay: Duration::from_secs(15),
            fail_fast: false,
            queue_max: None,
            reentry: turnstile_core::Reentry::None,
            who: None,
        };
        self.give(Input::Acquire { session: asked.0, acquire });
        asked
    }

    pub(crate) fn release(&mut self, (session, request): Asked) {
        self.give(Input::Release { session, request, ending: Ending::Clean });
    }

    /// Asks for what is free, and releases it.
    pub(crate) fn cycle(&mut self, want: &[(LockKey, Mode)]) {
        let before = self.grants;
        let asked = self.acquire(want);
        assert_eq!(self.grants, before + 1, "it was free");
        self.release(asked);
    }

    /// The first of `line` releases, the next is granted, and one more comes.
    pub(crate) fn hand_on(&mut self, line: &mut VecDeque<Asked>, want: &[(LockKey, Mode)]) {
        let before = self.grants;
        let first = line.pop_front().expect("somebody holds it");
        self.release(first);
        line.push_back(self.acquire(want));
        assert_eq!(self.grants, before + 1, "the next holds it");
    }

    /// All of `line` leave.
    pub(crate) fn leave(&mut self, line: VecDeque<Asked>) {
        line.into_iter().rev().for_each(|asked| self.release(asked));
    }

    pub(crate) fn owned_keys(&self) -> usize {
        self.engine.owned_key_count()
    }

    /// Each input comes a microsecond after the last.
    fn give(&mut self, input: Input) {
        self.now_us += 1;
        self.engine.handle(Instant::from_micros(self.now_us), input);
        while let Some(command) = self.engine.poll_command() {
            match command {
                Command::ClaimOwnership { key, claim, lock_delay, .. } => self.give(Input::OwnershipGained {
                    key,
                    claim,
                    epoch: Epoch(claim.0),
                    lock_delay,
                    quarantined_until: Instant::default(),
                }),
                Command::Grant { .. } => self.grants += 1,
                other => assert!(!matches!(other, Command::Reject { .. }), "{other:?}"),
            }
        }
        assert_eq!(self.engine.fault(), None);
    }
}

/// Key number `number`, whose name has 20 bytes.
pub(crate) fn key(number: usize) -> LockKey {
    LockKey::parse(&format!("default/acct:{number:07}")).expect("visible ASCII")
}

pub(crate) fn exclusive(number: usize) -> Want {
    vec![(key(number), Mode::Exclusive)]
}
