//! An engine, the model that watches it, and a store that answers claims; every step is checked.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use turnstile_core::{
    Acquire, ClaimId, Command, Config, Ending, Engine, Epoch, HeartbeatSeq, Input, Instant, LockKey, Mutation,
    RequestId, SessionId,
};

use crate::model::Model;

/// Set to have every step told: for reading what a failure is about.
const TELL: &str = "TURNSTILE_FUZZ_TELL";

/// Names a [`Mutation`] of the engine, which the targets must then catch.
const MUTATION: &str = "TURNSTILE_FUZZ_MUTATION";

static TELLS: LazyLock<bool> = LazyLock::new(|| std::env::var_os(TELL).is_some());

/// The mutations that the model or [`Engine::check`] can see.
const MUTATIONS: [Mutation; 10] = [
    Mutation::NoLockDelay,
    Mutation::EndBeforePromise,
    Mutation::LeaseIgnored,
    Mutation::LockDelayNotRaised,
    Mutation::SequenceReset,
    Mutation::SuspendedGranted,
    Mutation::ReleaseLostInResume,
    Mutation::SessionCutShort,
    Mutation::TimeoutNotTold,
    Mutation::PredecessorIgnored,
];

static MUTATED: LazyLock<Option<Mutation>> = LazyLock::new(|| {
    let name = std::env::var(MUTATION).ok()?;
    let found = MUTATIONS.into_iter().find(|mutation| format!("{mutation:?}") == name);
    Some(found.unwrap_or_else(|| panic!("{MUTATION}={name} is none of {MUTATIONS:?}")))
});

/// When the store answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, arbitrary::Arbitrary)]
pub enum Promptness {
    /// Every claim is gained at once.
    Prompt,
    /// When an operation says so.
    Told,
}

/// What a store says of a claim.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// It is ours; a predecessor's lock delays run on for so long.
    Gained(Duration),
    /// Another host has it.
    Queued,
    /// No.
    Refused,
}

/// A claim, as the store got it.
#[derive(Clone, Debug)]
struct Claim {
    key: LockKey,
    claim: ClaimId,
    lock_delay: Duration,
    new_epoch: bool,
}

/// The engine with all around it.
pub struct World {
    engine: Engine,
    model: Model,
    config: Config,
    now: Instant,
    promptness: Promptness,
    /// The latest claims, answered or not, newest last: a store may answer late, and twice.
    claims: Vec<Claim>,
    /// The epochs of the records that are ours.
    records: BTreeMap<LockKey, u64>,
    epoch: u64,
}

/// Claims of one key that the store remembers.
const CLAIMS_PER_KEY: usize = 3;

impl World {
    /// A world with a lease for a while, and nobody in it. Epochs count up from `epoch`.
    pub fn new(config: Config, promptness: Promptness, epoch: Epoch) -> Self {
        let mut world = Self {
            engine: Engine::with_mutation(config.clone(), *MUTATED),
            model: Model::new(&config),
            now: Instant::default(),
            promptness,
            claims: Vec::new(),
            records: BTreeMap::new(),
            epoch: epoch.0,
            config,
        };
        world.renew_lease(Duration::from_secs(5));
        world
    }

    /// Hands an input to the engine.
    pub fn give(&mut self, input: Input) {
        match &input {
            Input::OwnershipLost { key } => drop(self.records.remove(key)),
            Input::LeaseLost => self.records.clear(),
            _ => {}
        }
        self.handle(input);
        while self.promptness == Promptness::Prompt
            && let Some(newest) = self.claims.pop()
        {
            self.answer(newest, Answer::Gained(Duration::ZERO));
        }
    }

    /// Lets time pass, and calls the engine whenever it wants to be called.
    pub fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.engine.next_deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.catch_up();
            let still = self.engine.next_deadline().is_some_and(|next| next <= self.now);
            assert!(!still, "a deadline is not acted on");
        }
        self.now = end;
    }

    /// Lets time pass while nobody calls the engine, as if the host were frozen.
    pub fn freeze(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// Calls the engine because of the time.
    pub fn catch_up(&mut self) {
        self.tell(|| "handle_timeout".to_owned());
        self.model.turn(self.now);
        self.engine.handle_timeout(self.now);
        self.carry_out();
    }

    /// The lease is good for so long from now on.
    pub fn renew_lease(&mut self, time: Duration) {
        self.give(Input::LeaseRenewed { until: self.now + time });
    }

    /// Answers the claim that is `back` claims older than the newest, if the store knows one.
    pub fn answer_claim(&mut self, back: usize, answer: Answer) {
        let index = self.claims.len().checked_sub(back + 1);
        if let Some(claim) = index.and_then(|index| self.claims.get(index)) {
            self.answer(claim.clone(), answer);
        }
    }

    /// All sessions fall silent and all deadlines come. Then nobody waits and nothing is held (I5, I6), and every key of
    /// `keys` can be had again.
    pub fn end(mut self, keys: &[LockKey]) {
        let longest = self.config.session_ttl + self.config.hold_max + self.config.lock_delay_max;
        self.wait(longest * 2 + self.config.wait_max + self.config.claim_patience);
        assert_eq!(self.model.sessions(), 0, "I6: sessions outlive their TTL");
        assert_eq!(self.engine.hold_count(), 0, "I6: holds outlive their sessions");
        self.promptness = Promptness::Prompt;
        for (session, key) in (1_000..).map(SessionId).zip(keys) {
            self.wait(self.config.idle_ownership + self.config.session_ttl);
            self.renew_lease(self.config.session_ttl * 2);
            self.give(Input::OpenSession { session, seq: HeartbeatSeq(1) });
            self.give(Input::Acquire { session, acquire: Acquire::of_key(RequestId(1), key.clone()) });
            assert_eq!(self.engine.hold_count(), 1, "I6: {key} cannot be had");
            self.give(Input::Release { session, request: RequestId(1), ending: Ending::Clean });
        }
    }

    fn answer(&mut self, Claim { key, claim, lock_delay, new_epoch }: Claim, answer: Answer) {
        let input = match answer {
            Answer::Gained(quarantine) => {
                // To raise the lock delay of a record that is ours, a store may keep its epoch or not.
                let same = self.records.get(&key).filter(|_| !new_epoch && quarantine.is_zero());
                let epoch = same.copied().unwrap_or_else(|| {
                    self.epoch += 1;
                    self.epoch
                });
                self.records.insert(key.clone(), epoch);
                let (epoch, quarantined_until) = (Epoch(epoch), self.now + quarantine);
                Input::OwnershipGained { key, claim, epoch, lock_delay, quarantined_until }
            }
            Answer::Queued => {
                self.records.remove(&key);
                Input::OwnershipQueued { key, claim }
            }
            Answer::Refused => Input::OwnershipRefused { key, claim },
        };
        self.handle(input);
    }

    fn handle(&mut self, input: Input) {
        self.tell(|| format!("{input:?}"));
        self.model.input(self.now, &input);
        self.engine.handle(self.now, input);
        self.carry_out();
    }

    fn carry_out(&mut self) {
        assert_eq!(self.engine.fault(), None, "the engine is at fault");
        while let Some(command) = self.engine.poll_command() {
            self.tell(|| format!("    {command:?}"));
            self.model.command(&command);
            if let Command::YieldOwnership { key } = &command {
                self.records.remove(key);
            }
            if let Command::ClaimOwnership { key, claim, lock_delay, new_epoch } = command {
                let of_key = self.claims.iter().filter(|older| older.key == key).count();
                if of_key >= CLAIMS_PER_KEY {
                    let oldest = self.claims.iter().position(|older| older.key == key);
                    oldest.map(|oldest| self.claims.remove(oldest));
                }
                self.claims.push(Claim { key, claim, lock_delay, new_epoch });
            }
        }
        self.engine.check();
        assert_eq!(self.engine.waiter_count(), self.model.waiters(), "I5: somebody waits for an answer in vain");
        assert_eq!(self.engine.session_count(), self.model.sessions(), "sessions are miscounted");
    }

    fn tell(&self, step: impl FnOnce() -> String) {
        if *TELLS {
            eprintln!("{:?}  {}", self.now, step());
        }
    }
}
