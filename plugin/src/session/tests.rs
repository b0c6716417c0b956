//! The session in virtual time, against a script and against a small model of a host.

mod terms;
mod trouble;

use core::time::Duration;

use prost::Message;
use turnstile_protocol::v1::{self, Ending, client_item, server_item};

use super::*;
use crate::backoff::Jitter;
use crate::reentry::Kin;

const TTL_MS: u32 = 4_000;
const HEARTBEAT_MS: u32 = 1_000;
const VALID_MS: u32 = 3_900;

/// A session, its clock, and the wire: what the session sends is written down, and answers are given by hand.
struct Bench {
    session: Session,
    now: Instant,
    streams: u32,
    sent: Vec<client_item::Item>,
    closed: Vec<StreamToken>,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::from_micros(1_000_000_000);
        let names = Names { node: "node".to_owned(), worker: "worker".to_owned() };
        let session = Session::new(names, Backoff::new(Jitter::new(1)), now);
        Self { session, now, streams: 0, sent: Vec::new(), closed: Vec::new() }
    }

    /// With one stream up.
    fn live() -> Self {
        let mut bench = Self::new();
        bench.acquire(0, 5_000);
        bench.open();
        bench.welcome(false);
        assert_eq!(heartbeats(&bench.drain()), [2], "at once");
        bench.ack(2);
        bench.session.cancel(RequestRef(0));
        bench.drain();
        bench
    }

    fn acquire(&mut self, owner: u32, wait_ms: u64) {
        self.try_acquire(owner, wait_ms).expect("taken on");
        self.drain();
    }

    fn try_acquire(&mut self, owner: u32, wait_ms: u64) -> Result<(), Rejection> {
        let ask = Ask { wait: Duration::from_millis(wait_ms), hold: Duration::from_secs(60), ..ask(owner) };
        self.session.acquire(self.now, RequestRef(owner), ask)
    }

    fn open(&mut self) -> v1::Hello {
        assert!(self.session.wants_stream(self.now), "no stream is wanted");
        self.streams += 1;
        self.session.stream_opened(self.now, StreamToken(self.streams));
        match self.drain().as_slice() {
            [client_item::Item::Hello(hello)] => hello.clone(),
            other => panic!("a stream begins with {other:?}"),
        }
    }

    fn welcome(&mut self, resumed: bool) {
        self.say([v1::Welcome {
            protocol_version: 1,
            incarnation: "host".to_owned(),
            session_id: 7,
            resumed,
            ttl_ms: TTL_MS,
            heartbeat_ms: HEARTBEAT_MS,
            limits: None,
        }
        .into()]);
    }

    fn grant(&mut self, id: u64, heartbeat_seq: u64) {
        let keys = key_grants(&[100 + id]);
        self.say([v1::Grant { id, keys, heartbeat_seq, valid_ms: VALID_MS, ..Default::default() }.into()]);
    }

    fn ack(&mut self, seq: u64) {
        self.say([v1::HeartbeatAck { seq, valid_ms: VALID_MS }.into()]);
    }

    fn reject(&mut self, id: u64, reason: v1::RejectReason) {
        self.say([v1::Reject { id, reason: reason.into(), retry_after_ms: 0, queue_length: 0 }.into()]);
    }

    fn say(&mut self, items: impl IntoIterator<Item = v1::ServerItem>) {
        self.say_on(self.streams, items);
    }

    fn say_on(&mut self, stream: u32, items: impl IntoIterator<Item = v1::ServerItem>) {
        let message = v1::ServerMessage { items: items.into_iter().collect() }.encode_to_vec();
        self.session.receive(self.now, StreamToken(stream), &message);
    }

    /// Lets time pass, with a tick at least every [`TICK`].
    fn pass(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while self.now < end {
            self.now = (self.now + TICK).min(end);
            self.session.tick(self.now);
        }
    }

    /// Lets time pass without a tick: the worker is frozen.
    fn freeze(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
    }

    /// Takes what the session sends since the last time.
    fn drain(&mut self) -> Vec<client_item::Item> {
        let from = self.sent.len();
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Close(stream) => self.closed.push(stream),
                Output::Send(stream, message) => {
                    assert_eq!(stream, StreamToken(self.streams), "sent on an old stream");
                    let message = v1::ClientMessage::decode(message.as_slice()).expect("a message");
                    self.sent.extend(message.items.into_iter().filter_map(|item| item.item));
                }
            }
        }
        self.sent.get(from..).unwrap_or_default().to_vec()
    }

    fn outcomes(&mut self) -> Vec<(u32, Outcome)> {
        core::iter::from_fn(|| self.session.poll_outcome())
            .map(|(RequestRef(owner), outcome)| (owner, outcome))
            .collect()
    }

    /// Acquires and is granted: returns the number on the wire.
    fn hold(&mut self, owner: u32) -> u64 {
        self.session
            .acquire(self.now, RequestRef(owner), Ask { wait: Duration::from_secs(5), ..ask(owner) })
            .expect("taken on");
        let id = match self.drain().as_slice() {
            [client_item::Item::Acquire(acquire)] => acquire.id,
            other => panic!("asked with {other:?}"),
        };
        let seq = self.session.pulse.last_seq();
        self.grant(id, seq);
        assert_eq!(self.outcomes(), [(owner, granted(100 + id))]);
        assert!(self.believes(owner));
        id
    }

    /// Whether the lock that the request was granted last is believed in.
    fn believes(&mut self, owner: u32) -> bool {
        let owner = RequestRef(owner);
        let hold = self.session.ids.get(&owner).and_then(|id| self.session.holds.get(id));
        let tokens = hold.map(|hold| hold.tokens.clone());
        tokens.is_some_and(|tokens| self.session.believes(self.now, owner, &tokens))
    }

    fn break_stream(&mut self) {
        self.session.stream_closed(self.now, StreamToken(self.streams));
    }

    /// Waits until a stream is wanted again.
    fn pass_backoff(&mut self) {
        for _ in 0..100 {
            if self.session.wants_stream(self.now) {
                return;
            }
            self.pass(50);
        }
        panic!("no stream is wanted although one is needed");
    }
}

/// For a key of its own.
fn ask(owner: u32) -> Ask {
    Ask { keys: keys(&[&format!("default/key:{owner}")]), ..Default::default() }
}

fn keys(names: &[&str]) -> Vec<v1::KeyRequest> {
    let exclusive = v1::Mode::Exclusive.into();
    names.iter().map(|&key| v1::KeyRequest { key: key.to_owned(), mode: exclusive, limit: 0 }).collect()
}

fn key_grants(tokens: &[u64]) -> Vec<v1::KeyGrant> {
    tokens.iter().map(|&token| v1::KeyGrant { token, barrier: token }).collect()
}

/// A grant of one key.
fn granted(token: u64) -> Outcome {
    let tokens = Tokens::parse(&key_grants(&[token])).expect("there is one");
    Outcome::Granted(Granted { tokens, kin: Kin::None })
}

fn release(id: u64, ending: Ending) -> client_item::Item {
    client_item::Item::Release(v1::Release { id, ending: ending.into() })
}

fn heartbeats(items: &[client_item::Item]) -> Vec<u64> {
    items
        .iter()
        .filter_map(|item| match item {
            client_item::Item::Heartbeat(heartbeat) => Some(heartbeat.seq),
            _ => None,
        })
        .collect()
}

fn acquires(items: &[client_item::Item]) -> Vec<(u64, u32)> {
    items
        .iter()
        .filter_map(|item| match item {
            client_item::Item::Acquire(acquire) => Some((acquire.id, acquire.wait_ms)),
            _ => None,
        })
        .collect()
}

const UNAVAILABLE: Outcome = Outcome::Rejected(Rejection::HostUnavailable);

#[test]
fn nothing_is_opened_before_it_is_needed() {
    let mut bench = Bench::new();
    bench.pass(10_000);
    assert!(!bench.session.wants_stream(bench.now));
    assert!(!bench.session.is_busy());
    bench.acquire(1, 5_000);
    assert!(bench.sent.is_empty());
    let hello = bench.open();
    assert_eq!((hello.generation, hello.heartbeat_seq, hello.resume), (1, 1, None));
    assert_eq!((hello.node.as_str(), hello.worker.as_str()), ("node", "worker"));
}

#[test]
fn what_waits_for_the_first_welcome_is_asked_then_with_what_is_left_of_its_wait() {
    let mut bench = Bench::new();
    bench.acquire(1, 5_000);
    bench.open();
    bench.acquire(2, 3_000);
    bench.pass(200);
    bench.welcome(false);
    assert_eq!(acquires(&bench.drain()), [(1, 4_800), (2, 2_800)]);
}

#[test]
fn a_first_connection_that_fails_answers_at_once_and_is_tried_again() {
    let mut bench = Bench::new();
    bench.acquire(1, 5_000);
    bench.open();
    bench.break_stream();
    assert_eq!(bench.outcomes(), [(1, UNAVAILABLE)]);
    assert_eq!(bench.try_acquire(2, 5_000), Err(Rejection::HostUnavailable));
    bench.pass_backoff();
    bench.open();
    bench.welcome(false);
    bench.acquire(3, 5_000);
    assert_eq!(bench.outcomes(), []);
}

#[test]
fn back_off_grows_to_its_bound() {
    let mut bench = Bench::new();
    bench.acquire(1, 60_000);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        bench.open();
        bench.break_stream();
        let broken = bench.now;
        bench.try_acquire(9, 0).expect_err("the host is down");
        bench.pass_backoff();
        pauses.push(bench.now.saturating_since(broken));
    }
    assert!(pauses[0] <= Duration::from_millis(100), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= Backoff::LAST + TICK), "{pauses:?}");
    assert!(pauses[8..].iter().all(|pause| *pause >= Backoff::LAST / 2), "{pauses:?}");
}

#[test]
fn a_host_that_does_not_welcome_is_given_up() {
    let mut bench = Bench::new();
    bench.acquire(1, 5_000);
    bench.open();
    bench.pass(2_050);
    bench.drain();
    assert_eq!(bench.closed, [StreamToken(1)]);
    assert_eq!(bench.outcomes(), [(1, UNAVAILABLE)]);
}

#[test]
fn an_acquire_is_granted_and_released_once() {
    let mut bench = Bench::live();
    let id = bench.hold(1);
    bench.session.release(RequestRef(1), Ending::Clean);
    bench.session.release(RequestRef(1), Ending::Unclean);
    bench.session.cancel(RequestRef(1));
    assert_eq!(bench.drain(), [release(id, Ending::Clean)]);
}

#[test]
fn a_cancelled_waiter_is_told_and_its_late_grant_is_no_surprise() {
    let mut bench = Bench::live();
    bench.acquire(1, 5_000);
    let id = bench.session.next_id - 1;
    bench.session.cancel(RequestRef(1));
    assert_eq!(bench.drain(), [client_item::Item::Cancel(v1::Cancel { id })]);
    bench.grant(id, 2);
    assert_eq!((bench.drain(), bench.outcomes()), (vec![], vec![]));
}

#[test]
fn a_grant_that_nobody_asked_for_goes_back_unsent() {
    let mut bench = Bench::live();
    bench.grant(99, 2);
    assert_eq!(bench.drain(), [release(99, Ending::Unsent)]);
}

#[test]
fn rejections_say_why() {
    let mut bench = Bench::live();
    for (owner, (reason, rejection)) in [
        (v1::RejectReason::Conflict, Rejection::Conflict),
        (v1::RejectReason::WaitTimeout, Rejection::WaitOver { retry_after: None }),
        (v1::RejectReason::WaitHopeless, Rejection::Hopeless { retry_after: None }),
        (v1::RejectReason::QueueFull, Rejection::Busy { retry_after: None }),
        (v1::RejectReason::SessionFull, Rejection::Busy { retry_after: None }),
        (v1::RejectReason::StoreUnavailable, Rejection::HostUnavailable),
        (v1::RejectReason::TokensExhausted, Rejection::Busy { retry_after: None }),
        (v1::RejectReason::NoSuchHold, Rejection::NoSuchHold),
        (v1::RejectReason::Upgrade, Rejection::Upgrade),
        (v1::RejectReason::Invalid, Rejection::Invalid),
    ]
    .into_iter()
    .enumerate()
    {
        let owner = owner as u32 + 1;
        bench.acquire(owner, 5_000);
        let id = bench.session.next_id - 1;
        bench.reject(id, reason);
        assert_eq!(bench.outcomes(), [(owner, Outcome::Rejected(rejection))], "{reason:?}");
        bench.reject(id, reason);
        assert_eq!(bench.outcomes(), [], "twice {reason:?}");
    }
}

#[test]
fn heartbeats_are_numbered_and_keep_holds() {
    let mut bench = Bench::live();
    bench.hold(1);
    for beat in 3..13 {
        bench.pass(HEARTBEAT_MS.into());
        assert_eq!(heartbeats(&bench.drain()), [beat]);
        bench.ack(beat);
    }
    assert_eq!(bench.outcomes(), []);
    assert!(bench.believes(1));
}

#[test]
fn a_promise_counts_from_the_send_of_its_heartbeat_and_ends_early_enough() {
    let mut bench = Bench::live();
    let hello_sent = bench.now;
    bench.pass(500);
    bench.hold(1);
    // The host freezes: no ack ever comes.
    let promised = hello_sent + Duration::from_millis(VALID_MS.into());
    while bench.outcomes().is_empty() {
        bench.pass(10);
        bench.drain();
        assert!(bench.now + TICK < promised, "believed until {:?}, promised until {promised:?}", bench.now);
    }
    assert!(bench.now + MARGIN + TICK >= promised, "given up far too early, at {:?}", bench.now);
    assert!(!bench.believes(1));
}

#[test]
fn an_ack_renews_from_its_own_heartbeat_only() {
    let mut bench = Bench::live();
    bench.hold(1);
    bench.pass(1_000);
    let second_sent = bench.now;
    bench.pass(900);
    bench.ack(3);
    bench.pass(1_900);
    bench.drain();
    assert_eq!(bench.outcomes(), []);
    let promised = second_sent + Duration::from_millis(VALID_MS.into());
    bench.pass(promised.saturating_since(bench.now).as_millis() as u64);
    assert!(matches!(bench.outcomes()[..], [(1, Outcome::Lost(_))]));
}

#[test]
fn an_ack_of_an_unknown_heartbeat_renews_nothing() {
    let mut bench = Bench::live();
    bench.hold(1);
    bench.ack(1_000);
    bench.pass(u64::from(VALID_MS));
    assert!(matches!(bench.outcomes()[..], [(1, Outcome::Lost(_))]));
}

#[test]
fn a_grant_that_waited_in_a_socket_is_returned_and_asked_again() {
    let mut bench = Bench::live();
    bench.acquire(1, 60_000);
    bench.freeze(10_000);
    bench.grant(2, 2);
    let items = bench.drain();
    assert_eq!(items.first(), Some(&release(2, Ending::Unsent)));
    assert_eq!(acquires(&items), [(3, 50_000)]);
    assert_eq!(bench.outcomes(), []);
}

#[test]
fn an_expired_grant_whose_wait_is_over_is_a_rejection() {
    let mut bench = Bench::live();
    bench.acquire(1, 5_000);
    bench.freeze(10_000);
    bench.grant(2, 2);
    assert_eq!(bench.drain(), [release(2, Ending::Unsent)]);
    // Not that there is no host: it is there, and has granted.
    assert_eq!(bench.outcomes(), [(1, Outcome::Rejected(Rejection::WaitOver { retry_after: None }))]);
}

#[test]
fn a_freeze_between_grant_and_resume_is_found_out() {
    let mut bench = Bench::live();
    bench.acquire(1, 60_000);
    bench.grant(2, 2);
    assert_eq!(bench.outcomes(), [(1, granted(102))]);
    bench.freeze(4_000);
    assert!(!bench.believes(1));
    let items = bench.drain();
    assert_eq!(items.first(), Some(&release(2, Ending::Unsent)));
    assert_eq!(acquires(&items), [(3, 56_000)]);
    // The same after a tick has seen it.
    bench.grant(3, 2);
    assert_eq!(bench.drain().first(), Some(&release(3, Ending::Unsent)));
}
