//! The engine as a list of operations: what a fuzzer writes, and how it is carried out in a [`World`].

use std::num::NonZeroU32;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use turnstile_core::{
    Acquire, Config, Ending, Epoch, ForcedDelay, HandoffBudget, HeartbeatSeq, HolderSecret, Input, KeyRequest, LockKey,
    Mode, Reentry, RequestId, Resume, SessionId, Token,
};

use crate::world::{Answer, Promptness, World};

/// A whole run.
#[derive(Debug, Arbitrary)]
pub struct Script {
    bounds: Bounds,
    promptness: Promptness,
    operations: Vec<Operation>,
}

/// A number below `N`.
#[derive(Clone, Copy, Debug)]
struct Below<const N: u8>(u8);

/// How long something lasts, at a scale at which the durations of the engine lie close together.
#[derive(Clone, Copy, Debug)]
struct Millis(u16);

#[derive(Debug, Arbitrary)]
struct Bounds {
    sessions: Below<2>,
    waiters: Below<6>,
    waiters_per_session: Below<4>,
    waiters_per_key: Below<4>,
    holds_per_session: Below<6>,
    joins_per_hold: Below<4>,
    keys: Below<3>,
    handoffs: Below<4>,
    idle: Millis,
    /// Epochs soon come to the end of their range.
    last_epochs: bool,
}

/// One of three clients that live through several sessions.
type Client = Below<3>;

/// How many requests ago.
type Back = Below<6>;

#[derive(Debug, Arbitrary)]
enum Operation {
    Wait(Millis),
    Freeze(Millis),
    CatchUp,
    Open(Client),
    /// Every client sends a heartbeat, and the lease is renewed.
    BeatAll,
    Beat(Client),
    BeatAgain(Client),
    Suspend(Client),
    Resume(Client, [Listed; 6], Option<Want>),
    Acquire(Client, Want),
    AcquireAgain(Client, Back),
    Cancel(Client, Back),
    Release(Client, Back, End),
    Answer(Below<4>, StoreAnswer),
    Contend(KeyNumber),
    LoseKey(KeyNumber),
    RenewLease(Millis),
    LoseLease,
    Force(KeyNumber, Option<Below<4>>, bool),
    Drain,
}

type KeyNumber = Below<3>;

/// What a resume says of one request.
#[derive(Clone, Copy, Debug, Arbitrary)]
enum Listed {
    No,
    Waits(Millis),
    Holds,
    Released(End),
    /// The release and the new wait crossed.
    ReleasedAndWaits(End),
}

#[derive(Clone, Copy, Debug, Arbitrary)]
enum End {
    Clean,
    Unclean,
    Unsent,
}

#[derive(Clone, Copy, Debug, Arbitrary)]
enum StoreAnswer {
    Gained,
    GainedInQuarantine(Millis),
    Queued,
    Refused,
}

#[derive(Debug, Arbitrary)]
struct Want {
    first: (KeyNumber, WantMode),
    more: Option<(KeyNumber, WantMode)>,
    third: Option<(KeyNumber, WantMode)>,
    wait: Option<Millis>,
    hold: Option<Millis>,
    lock_delay: Option<Millis>,
    fail_fast: bool,
    queue_max: Option<Below<3>>,
    reentry: WantReentry,
}

#[derive(Clone, Copy, Debug, Arbitrary)]
enum WantMode {
    Exclusive,
    Shared,
    Limit(Below<3>),
}

#[derive(Clone, Copy, Debug, Arbitrary)]
enum WantReentry {
    None,
    Offer,
    /// The secret that was offered so many offers ago.
    Join(Below<4>),
}

impl<'a, const N: u8> Arbitrary<'a> for Below<N> {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self(u8::arbitrary(input)? % N))
    }

    fn size_hint(_depth: usize) -> (usize, Option<usize>) {
        (1, Some(1))
    }
}

impl<'a> Arbitrary<'a> for Millis {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        // Steps of 25 ms, so that instants often fall together.
        Ok(Self(u16::from(u8::arbitrary(input)? % 64) * 25))
    }

    fn size_hint(_depth: usize) -> (usize, Option<usize>) {
        (1, Some(1))
    }
}

impl From<Millis> for Duration {
    fn from(millis: Millis) -> Self {
        Self::from_millis(millis.0.into())
    }
}

impl From<End> for Ending {
    fn from(end: End) -> Self {
        match end {
            End::Clean => Self::Clean,
            End::Unclean => Self::Unclean,
            End::Unsent => Self::Unsent,
        }
    }
}

/// The epochs of a store that is all but worn out; below the last, so that some grants are still made.
const LAST_EPOCHS: Epoch = Epoch(Token::EPOCH_MAX.0 - 3);

impl Bounds {
    fn config(&self) -> Config {
        let count = |below: u8| 1 + usize::from(below);
        Config {
            session_ttl: Duration::from_secs(1),
            sessions_max: 2 + usize::from(self.sessions.0),
            waiters_max: count(self.waiters.0),
            waiters_per_session_max: count(self.waiters_per_session.0),
            waiters_per_key_max: count(self.waiters_per_key.0),
            holds_per_session_max: count(self.holds_per_session.0),
            joins_per_hold_max: count(self.joins_per_hold.0),
            keys_max: count(self.keys.0),
            wait_max: Duration::from_secs(2),
            hold_max: Duration::from_secs(1),
            lock_delay_max: Duration::from_secs(1),
            claim_patience: Duration::from_millis(500),
            handoff_budget: HandoffBudget { grants: self.handoffs.0.into(), time: Duration::from_millis(100) },
            idle_ownership: Duration::from(self.idle) + Duration::from_millis(25),
        }
    }
}

impl Script {
    /// Carries it out.
    pub fn run(&self) {
        let epoch = if self.bounds.last_epochs { LAST_EPOCHS } else { Epoch(0) };
        let mut stage = Stage {
            world: World::new(self.bounds.config(), self.promptness, epoch),
            keys: ["d/a", "d/b", "d/c"].map(|name| LockKey::parse(name).expect("a key")),
            clients: Default::default(),
            sessions: 0,
            secrets: 0,
        };
        for operation in &self.operations {
            stage.carry_out(operation);
        }
        if !self.bounds.last_epochs && !self.operations.iter().any(|operation| matches!(operation, Operation::Drain)) {
            stage.world.end(&stage.keys);
        }
    }
}

struct Stage {
    world: World,
    keys: [LockKey; 3],
    clients: [ClientState; 3],
    sessions: u64,
    /// How many secrets were offered.
    secrets: u64,
}

/// A client's present session, and all that it asked for in it: request `n` is at place `n - 1`.
#[derive(Default)]
struct ClientState {
    session: Option<SessionId>,
    seq: u64,
    acquires: Vec<Acquire>,
}

impl ClientState {
    fn ago(&self, back: Back) -> Option<&Acquire> {
        self.acquires.get(self.acquires.len().checked_sub(usize::from(back.0) + 1)?)
    }

    fn next_seq(&mut self) -> HeartbeatSeq {
        self.seq += 1;
        HeartbeatSeq(self.seq)
    }
}

impl Stage {
    fn carry_out(&mut self, operation: &Operation) {
        match operation {
            Operation::Wait(time) => self.world.wait((*time).into()),
            Operation::Freeze(time) => self.world.freeze((*time).into()),
            Operation::CatchUp => self.world.catch_up(),
            Operation::BeatAll => {
                self.world.renew_lease(Duration::from_secs(2));
                (0..3).for_each(|client| self.beat(Below(client)));
            }
            Operation::Answer(back, answer) => self.world.answer_claim(back.0.into(), (*answer).into()),
            Operation::Contend(key) => self.give(Input::OwnershipContended { key: self.key(*key) }),
            Operation::LoseKey(key) => self.give(Input::OwnershipLost { key: self.key(*key) }),
            Operation::RenewLease(time) => self.world.renew_lease((*time).into()),
            Operation::LoseLease => self.give(Input::LeaseLost),
            Operation::Force(key, token, skip) => {
                // Any token: that of an early grant, or none that ever was.
                let token = token.and_then(|number| Token::new(Epoch(1), number.0.into()));
                let delay = if *skip { ForcedDelay::Skip } else { ForcedDelay::Keep };
                self.give(Input::ForceRelease { key: self.key(*key), token, delay });
            }
            Operation::Drain => self.give(Input::Drain),
            Operation::Open(client) => self.open(*client),
            Operation::Beat(client) => self.beat(*client),
            Operation::BeatAgain(_)
            | Operation::Suspend(_)
            | Operation::Resume(..)
            | Operation::Acquire(..)
            | Operation::AcquireAgain(..)
            | Operation::Cancel(..)
            | Operation::Release(..) => self.carry_out_in_session(operation),
        }
    }

    /// Operations of clients that have a session, which may be over by now.
    fn carry_out_in_session(&mut self, operation: &Operation) {
        let input = match operation {
            Operation::BeatAgain(client) => self.session(*client).map(|session| {
                let seq = HeartbeatSeq(self.client(*client).seq);
                Input::Heartbeat { session, seq }
            }),
            Operation::Suspend(client) => self.session(*client).map(|session| Input::SuspendSession { session }),
            Operation::Resume(client, listed, want) => self.resume(*client, listed, want.as_ref()),
            Operation::Acquire(client, want) => self.session(*client).map(|session| {
                let acquire = self.acquire(*client, want);
                Input::Acquire { session, acquire }
            }),
            Operation::AcquireAgain(client, back) => {
                self.of_request(*client, *back, |session, acquire| Input::Acquire { session, acquire: acquire.clone() })
            }
            Operation::Cancel(client, back) => {
                self.of_request(*client, *back, |session, acquire| Input::Cancel { session, request: acquire.request })
            }
            Operation::Release(client, back, end) => self.of_request(*client, *back, |session, acquire| {
                Input::Release { session, request: acquire.request, ending: (*end).into() }
            }),
            _ => None,
        };
        if let Some(input) = input {
            self.give(input);
        }
    }

    fn give(&mut self, input: Input) {
        self.world.give(input);
    }

    fn key(&self, number: KeyNumber) -> LockKey {
        self.keys[usize::from(number.0)].clone()
    }

    fn client(&mut self, client: Client) -> &mut ClientState {
        &mut self.clients[usize::from(client.0)]
    }

    fn session(&self, client: Client) -> Option<SessionId> {
        self.clients[usize::from(client.0)].session
    }

    fn of_request(
        &self,
        client: Client,
        back: Back,
        input: impl FnOnce(SessionId, &Acquire) -> Input,
    ) -> Option<Input> {
        let client = &self.clients[usize::from(client.0)];
        Some(input(client.session?, client.ago(back)?))
    }

    /// A new session; the old one, if any, is left to itself.
    fn open(&mut self, client: Client) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        *self.client(client) = ClientState { session: Some(session), ..ClientState::default() };
        let seq = self.client(client).next_seq();
        self.give(Input::OpenSession { session, seq });
    }

    fn beat(&mut self, client: Client) {
        if let Some(session) = self.session(client) {
            let seq = self.client(client).next_seq();
            self.give(Input::Heartbeat { session, seq });
        }
    }

    fn resume(&mut self, client: Client, listed: &[Listed], want: Option<&Want>) -> Option<Input> {
        let session = self.session(client)?;
        let mut resume = Resume::default();
        for (back, listed) in (0..).zip(listed) {
            let Some(mut waiter) = self.clients[usize::from(client.0)].ago(Below(back)).cloned() else { continue };
            if let Reentry::Offer(_) = waiter.reentry {
                // The driver makes a new one whenever it parses a request.
                waiter.reentry = Reentry::Offer(self.new_secret());
            }
            let request = waiter.request;
            match listed {
                Listed::No => {}
                Listed::Waits(wait) => resume.waiters.push(Acquire { wait: (*wait).into(), ..waiter }),
                Listed::Holds => resume.holds.push(request),
                Listed::Released(end) => resume.releases.push((request, (*end).into())),
                Listed::ReleasedAndWaits(end) => {
                    resume.releases.push((request, (*end).into()));
                    resume.waiters.push(waiter);
                }
            }
        }
        resume.waiters.reverse();
        if let Some(want) = want {
            // Sent on the stream that broke, and never heard.
            let acquire = self.acquire(client, want);
            resume.waiters.push(acquire);
        }
        let seq = self.client(client).next_seq();
        Some(Input::ResumeSession { session, seq, resume })
    }

    fn new_secret(&mut self) -> HolderSecret {
        self.secrets += 1;
        secret(self.secrets)
    }

    fn acquire(&mut self, client: Client, want: &Want) -> Acquire {
        let mut keys: Vec<KeyRequest> = Vec::new();
        for (number, mode) in [Some(want.first), want.more, want.third].into_iter().flatten() {
            // The same key twice is refused; that is tried only with the first.
            let key = self.key(number);
            if keys.len() < 2 || keys.iter().all(|request| request.key != key) {
                keys.push(KeyRequest { key, mode: mode.into() });
            }
        }
        let reentry = match want.reentry {
            WantReentry::None => Reentry::None,
            WantReentry::Offer => Reentry::Offer(self.new_secret()),
            WantReentry::Join(back) => Reentry::Join(secret(self.secrets.saturating_sub(back.0.into()))),
        };
        let client = self.client(client);
        let acquire = Acquire {
            request: RequestId(client.acquires.len() as u64 + 1),
            keys: keys.into_iter().collect(),
            wait: want.wait.map_or(Duration::ZERO, Duration::from),
            hold: want.hold.map(Duration::from),
            lock_delay: want.lock_delay.map_or(Duration::ZERO, Duration::from),
            fail_fast: want.fail_fast,
            queue_max: want.queue_max.map(|max| max.0.into()),
            reentry,
            who: None,
        };
        client.acquires.push(acquire.clone());
        acquire
    }
}

fn secret(number: u64) -> HolderSecret {
    HolderSecret(u128::from(number).to_be_bytes())
}

impl From<WantMode> for Mode {
    fn from(mode: WantMode) -> Self {
        match mode {
            WantMode::Exclusive => Self::Exclusive,
            WantMode::Shared => Self::Shared,
            WantMode::Limit(below) => Self::Limit(NonZeroU32::MIN.saturating_add(below.0.into())),
        }
    }
}

impl From<StoreAnswer> for Answer {
    fn from(answer: StoreAnswer) -> Self {
        match answer {
            StoreAnswer::Gained => Self::Gained(Duration::ZERO),
            StoreAnswer::GainedInQuarantine(time) => Self::Gained(time.into()),
            StoreAnswer::Queued => Self::Queued,
            StoreAnswer::Refused => Self::Refused,
        }
    }
}
