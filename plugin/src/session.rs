//! The client's side of a session with a host: a state machine without I/O and clock.
//!
//! Inputs are requests ([`Session::acquire`], [`Session::cancel`], [`Session::release`]), the stream
//! ([`Session::stream_opened`], [`Session::stream_closed`], [`Session::receive`]) and time ([`Session::tick`]). Outputs
//! are [`Session::wants_stream`], [`Session::poll_output`] and [`Session::poll_outcome`]. Whoever gives an input takes
//! all outputs afterwards. Before that, whoever knows other hosts may take waiters to them ([`Session::take_declined`],
//! [`Session::take_waiter`]).

mod farewells;
mod handover;
mod link;
mod outbox;
mod pulse;
mod receive;
mod terms;
#[cfg(test)]
mod tests;
mod trouble;

use core::time::Duration;
use std::collections::{BTreeMap, HashMap, VecDeque};

use turnstile_protocol::v1;

use crate::backoff::Backoff;
use crate::clock::Instant;
use farewells::{Farewell, Farewells};
use link::{Abandoned, Identity, Link};
use outbox::Outbox;
use pulse::Pulse;
use trouble::StoreTrouble;

pub use handover::{ClusterSet, Decline, Sign};
pub use terms::{Ask, Granted, Loss, Outcome, Rejection, Tokens};

/// The longest time between two calls of [`Session::tick`] while [`Session::is_busy`].
pub const TICK: Duration = Duration::from_millis(50);
/// Beliefs end this long before their promise (or a quarter of it, if it is that short), since a tick may come late.
pub const MARGIN: Duration = Duration::from_millis(200);
/// However short a request's wait is, it may take this long to reach a host.
pub const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
/// A host answers a wait that is over by itself; if it does not, we do, after this long.
pub const ANSWER_PATIENCE: Duration = Duration::from_millis(1_500);
/// And after this long, if hosts come and go, so that it is asked again and again.
pub const LAST_PATIENCE: Duration = Duration::from_millis(4_500);
/// What a host said no to may be asked of it again after this long.
pub const DECLINED_FOR: Duration = Duration::from_secs(2);
/// A stream that was opened must be welcomed within this time.
pub const GREETING_PATIENCE: Duration = Duration::from_secs(2);
/// A host that takes longer than this to greet is passed over, if there is another one.
pub const GREETING_SUSPICION: Duration = Duration::from_millis(500);
/// A session that nobody has needed for this long is closed.
pub const IDLE_MAX: Duration = Duration::from_secs(60);
/// Requests of one session that wait.
pub const WAITERS_MAX: usize = 4_096;
/// Requests of one session that hold.
pub const HOLDS_MAX: usize = 16_384;
/// Farewells that the host has not acknowledged. Half of it calls for a heartbeat out of turn.
pub const FAREWELLS_MAX: usize = 32_768;

/// Which request of this filter; chosen by the caller, and in use once at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestRef(pub u32);

/// A stream as the proxy numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamToken(pub u32);

/// What the caller has to do with the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this message.
    Send(StreamToken, Vec<u8>),
    /// Close the stream; nothing of it counts any more.
    Close(StreamToken),
}

/// The names that a session is known by at the host.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// The proxy's name.
    pub node: String,
    /// This worker's, unique.
    pub worker: String,
}

/// A request that waits.
#[derive(Debug)]
pub struct Waiter {
    owner: RequestRef,
    acquire: v1::Acquire,
    asked: Instant,
    deadline: Instant,
    /// When its host was asked; until then, when it came to this host.
    since: Instant,
    /// Whether the host of the current session was asked.
    sent: bool,
    /// It has been in a host's queue, or came while a session lived: a failed connection does not end its wait.
    patient: bool,
    declined_by: ClusterSet,
}

impl Waiter {
    fn wait_left(&self, now: Instant) -> u32 {
        millis(self.deadline.saturating_since(now))
    }
}

#[derive(Debug)]
struct Hold {
    owner: RequestRef,
    tokens: Tokens,
    promise: Instant,
    limit: Instant,
    /// The owner was told `Lost`, and has not released yet.
    lost: bool,
    /// What to ask again with, until the owner acts on the grant.
    unused: Option<Box<Waiter>>,
}

/// A session, over all its streams.
#[derive(Debug)]
pub struct Session {
    names: Names,
    link: Link,
    identity: Option<Identity>,
    /// Only while there is no identity.
    abandoned: Option<Abandoned>,
    generation: u64,
    /// Connections that failed since the last Welcome.
    failures: u32,
    backoff: Backoff,
    pulse: Pulse,
    next_id: u64,
    ids: HashMap<RequestRef, u64>,
    waiters: BTreeMap<u64, Waiter>,
    holds: BTreeMap<u64, Hold>,
    farewells: Farewells,
    outbox: Outbox,
    closing: Option<StreamToken>,
    /// Losses go first: an abort that comes late is worth nothing.
    losses: VecDeque<(RequestRef, Loss)>,
    outcomes: VecDeque<(RequestRef, Outcome)>,
    /// Waiters that this host does not serve, for now or at all.
    declined: VecDeque<(Waiter, Decline)>,
    /// When it was last needed.
    used: Instant,
    draining: bool,
    /// Whether the host's last word was good for any time.
    able: bool,
    store: StoreTrouble,
}

impl Session {
    /// A session without a stream. The first request wants one.
    pub fn new(names: Names, backoff: Backoff, now: Instant) -> Self {
        Self {
            names,
            link: Link::Idle,
            identity: None,
            abandoned: None,
            generation: 0,
            failures: 0,
            backoff,
            pulse: Pulse::default(),
            next_id: 1,
            ids: HashMap::new(),
            waiters: BTreeMap::new(),
            holds: BTreeMap::new(),
            farewells: Farewells::default(),
            outbox: Outbox::default(),
            closing: None,
            losses: VecDeque::new(),
            outcomes: VecDeque::new(),
            declined: VecDeque::new(),
            used: now,
            draining: false,
            able: true,
            store: StoreTrouble::default(),
        }
    }

    // Inputs: requests.

    /// Asks for locks. Exactly one outcome `Granted` or `Rejected` follows, unless [`Session::cancel`] comes first.
    pub fn acquire(&mut self, now: Instant, owner: RequestRef, ask: Ask) -> Result<(), Rejection> {
        self.wake(now);
        if self.is_host_down() {
            return Err(Rejection::HostUnavailable);
        }
        let full =
            self.waiters.len() >= WAITERS_MAX || self.holds.len() >= HOLDS_MAX || self.farewells.len() >= FAREWELLS_MAX;
        if full || self.ids.contains_key(&owner) {
            return Err(Rejection::Busy { retry_after: None });
        }
        let patient = self.identity.is_some();
        let deadline = now + ask.wait;
        let acquire = ask.into();
        let declined_by = ClusterSet::default();
        self.enqueue(
            now,
            Waiter { owner, acquire, asked: now, deadline, since: now, sent: false, patient, declined_by },
        );
        Ok(())
    }

    /// The request is no longer wanted, and never reached the upstream.
    pub fn cancel(&mut self, owner: RequestRef) {
        let Some(id) = self.ids.remove(&owner) else { return };
        if let Some(waiter) = self.waiters.remove(&id) {
            if waiter.sent {
                self.say_farewell(id, Farewell::Cancel);
            }
        } else if self.holds.remove(&id).is_some() {
            self.say_farewell(id, Farewell::Release(v1::Ending::Unsent));
        }
    }

    /// The hold has ended.
    pub fn release(&mut self, owner: RequestRef, ending: v1::Ending) {
        let Some(id) = self.ids.remove(&owner) else { return };
        if self.holds.remove(&id).is_some() {
            self.say_farewell(id, Farewell::Release(ending));
        } else if self.waiters.remove(&id).is_some_and(|waiter| waiter.sent) {
            self.say_farewell(id, Farewell::Cancel);
        }
    }

    /// To be asked right before the request is let through: whether the locks granted with `tokens` are still to be
    /// believed in. If not, the grant goes back unsent, and the request waits on (a new outcome follows).
    pub fn believes(&mut self, now: Instant, owner: RequestRef, tokens: &Tokens) -> bool {
        let Some(&id) = self.ids.get(&owner) else { return false };
        // A grant of an earlier session may have been overtaken by the one that was asked for in its place.
        let Some(hold) = self.holds.get_mut(&id).filter(|hold| hold.tokens == *tokens) else { return false };
        if !hold.lost && now < hold.promise {
            hold.unused = None;
            return true;
        }
        if let Some(waiter) = hold.unused.take() {
            self.holds.remove(&id);
            self.ids.remove(&owner);
            self.say_farewell(id, Farewell::Release(v1::Ending::Unsent));
            self.ask_again(now, *waiter);
        }
        false
    }

    // Inputs: time.

    /// The session is needed.
    pub fn wake(&mut self, now: Instant) {
        self.used = now;
        if self.link == Link::Idle {
            self.link = Link::Waking;
            self.failures = 0;
        }
    }

    /// Acts on what has come due.
    pub fn tick(&mut self, now: Instant) {
        self.tick_link(now);
        self.end_holds(now);
        self.end_waits(now);
    }

    // Outputs.

    /// What became of a request.
    pub fn poll_outcome(&mut self) -> Option<(RequestRef, Outcome)> {
        if let Some(loss) = self.poll_loss() {
            return Some(loss);
        }
        if !self.outcomes.is_empty() {
            return self.outcomes.pop_front();
        }
        self.poll_declined().map(|(owner, rejection)| (owner, Outcome::Rejected(rejection)))
    }

    /// A lost hold, before all other outcomes.
    pub fn poll_loss(&mut self) -> Option<(RequestRef, Outcome)> {
        self.losses.pop_front().map(|(owner, loss)| (owner, Outcome::Lost(loss)))
    }

    /// What to do with the stream.
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(stream) = self.closing.take() {
            return Some(Output::Close(stream));
        }
        let stream = self.link.stream()?;
        self.outbox.pop().map(|message| Output::Send(stream, message))
    }

    /// Ends the session: the streams that are still to be closed.
    pub fn into_streams(self) -> impl Iterator<Item = StreamToken> {
        [self.closing, self.link.stream()].into_iter().flatten()
    }

    // Getters.

    /// Whether [`Session::poll_outcome`] has one.
    pub fn has_outcome(&self) -> bool {
        !(self.losses.is_empty() && self.outcomes.is_empty() && self.declined.is_empty())
    }

    /// Whether [`Session::poll_output`] has one.
    pub fn has_output(&self) -> bool {
        self.closing.is_some() || !self.outbox.is_empty()
    }

    /// The stream in use.
    pub fn stream(&self) -> Option<StreamToken> {
        self.link.stream()
    }

    /// Whether ticks are needed every [`TICK`], or only now and then.
    pub fn is_busy(&self) -> bool {
        self.link != Link::Idle
    }

    /// Whether nobody waits or holds here, and the host knows it.
    pub fn is_unused(&self) -> bool {
        self.ids.is_empty() && self.farewells.len() == 0
    }

    /// Whether the host said that it goes away: the waiters belong to a [`Session::successor`].
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    // Helpers.

    fn enqueue(&mut self, now: Instant, mut waiter: Waiter) {
        let id = self.next_id;
        self.next_id += 1;
        waiter.acquire.id = id;
        waiter.sent = false;
        self.ids.insert(waiter.owner, id);
        if self.link.is_live() && !self.draining {
            self.send_acquire(now, &mut waiter);
        }
        self.waiters.insert(id, waiter);
    }

    /// Asks again, under a new number and with what is left of the wait.
    fn ask_again(&mut self, now: Instant, waiter: Waiter) {
        if now < waiter.deadline {
            self.enqueue(now, waiter);
        } else if self.link.is_live() && waiter.has_waited(now) {
            // Its host is well: that it is too late is no absence of a host.
            self.reject(waiter.owner, Rejection::WaitOver { retry_after: None });
        } else {
            self.decline(waiter, Decline::Late);
        }
    }

    fn send_acquire(&mut self, now: Instant, waiter: &mut Waiter) {
        let mut acquire = core::mem::take(&mut waiter.acquire);
        acquire.wait_ms = waiter.wait_left(now);
        if let Some(v1::client_item::Item::Acquire(acquire)) = self.outbox.push(acquire.into()).item {
            waiter.acquire = acquire;
        }
        waiter.since = now;
        waiter.sent = true;
        waiter.patient = true;
    }

    fn say_farewell(&mut self, id: u64, farewell: Farewell) {
        if self.identity.is_none() {
            return;
        }
        let told = self.link.is_live();
        if told {
            self.outbox.push(farewell.item(id));
        }
        self.farewells.push(id, farewell, self.pulse.last_seq(), told);
    }

    fn reject(&mut self, owner: RequestRef, rejection: Rejection) {
        self.ids.remove(&owner);
        self.outcomes.push_back((owner, Outcome::Rejected(rejection)));
    }

    fn end_holds(&mut self, now: Instant) {
        for hold in self.holds.values_mut().filter(|hold| !hold.lost) {
            let loss = if hold.promise <= now {
                Loss::PromiseOver
            } else if hold.limit <= now {
                Loss::HoldLimit
            } else {
                continue;
            };
            hold.lost = true;
            // A grant that nobody has acted on yet is found out by `believes`.
            if hold.unused.is_none() {
                self.losses.push_back((hold.owner, loss));
            }
        }
    }

    fn end_waits(&mut self, now: Instant) {
        let live = self.link.is_live();
        let patience = |waiter: &Waiter| {
            let here = if live && waiter.sent {
                waiter.deadline.max(waiter.since) + ANSWER_PATIENCE
            } else {
                waiter.deadline.max(waiter.since + CONNECT_PATIENCE)
            };
            // However often it is asked anew.
            here.min(waiter.deadline + LAST_PATIENCE)
        };
        let over: Vec<u64> =
            self.waiters.iter().filter(|(_, waiter)| patience(waiter) <= now).map(|(&id, _)| id).collect();
        over.into_iter().for_each(|id| self.decline_waiter(id, Decline::Late));
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
