//! The session in use with the host of one cluster, and those that end while their last holds run out because that host
//! goes away.

use turnstile_protocol::v1::Ending;

use crate::backoff::Backoff;
use crate::clock::Instant;
use crate::reentry::{HolderSecret, Reentry};
use crate::session::{
    Ask, Decline, Names, Outcome, Output, Rejection, RequestRef, Session, Sign, StreamToken, Tokens, Waiter,
};

/// Sessions that may be ending at once; past that, waiters wait until one has ended.
const RETIRING_MAX: usize = 4;

/// All sessions of one worker with the host of one cluster. Its methods are those of [`Session`].
#[derive(Debug)]
pub struct Sessions {
    names: Names,
    current: Session,
    retiring: Vec<Session>,
    closing: Vec<StreamToken>,
    /// A session was told to go elsewhere.
    departed: bool,
    /// The incarnation that said so last. It takes nothing on any more.
    leaving: Option<String>,
}

impl Sessions {
    /// One session, without a stream.
    pub fn new(names: Names, backoff: Backoff, now: Instant) -> Self {
        let current = Session::new(names.clone(), backoff, now);
        Self { names, current, retiring: Vec::new(), closing: Vec::new(), departed: false, leaving: None }
    }

    /// See [`Session::acquire`].
    pub fn acquire(&mut self, now: Instant, owner: RequestRef, ask: Ask) -> Result<(), Rejection> {
        if let Reentry::Join(secret) = &ask.reentry
            && self.is_left(secret.as_bytes())
        {
            return Err(Rejection::NoSuchHold);
        }
        self.current.acquire(now, owner, ask)
    }

    /// See [`Session::cancel`].
    pub fn cancel(&mut self, owner: RequestRef) {
        self.all().for_each(|session| session.cancel(owner));
    }

    /// See [`Session::release`].
    pub fn release(&mut self, owner: RequestRef, ending: Ending) {
        self.all().for_each(|session| session.release(owner, ending));
    }

    /// See [`Session::believes`].
    pub fn believes(&mut self, now: Instant, owner: RequestRef, tokens: &Tokens) -> bool {
        self.all().any(|session| session.believes(now, owner, tokens))
    }

    /// See [`Session::wants_stream`]; sessions that are ending want theirs back, too.
    pub fn wants_stream(&self, now: Instant) -> bool {
        self.current.wants_stream(now) || self.retiring.iter().any(|session| session.wants_stream(now))
    }

    /// See [`Session::stream_opened`].
    pub fn stream_opened(&mut self, now: Instant, stream: StreamToken) {
        if let Some(session) = self.all().find(|session| session.wants_stream(now)) {
            session.stream_opened(now, stream);
        }
    }

    /// See [`Session::stream_refused`].
    pub fn stream_refused(&mut self, now: Instant) {
        if let Some(session) = self.all().find(|session| session.wants_stream(now)) {
            session.stream_refused(now);
        }
    }

    /// See [`Session::stream_closed`].
    pub fn stream_closed(&mut self, now: Instant, stream: StreamToken) {
        self.all().for_each(|session| session.stream_closed(now, stream));
    }

    /// See [`Session::receive`].
    pub fn receive(&mut self, now: Instant, stream: StreamToken, message: &[u8]) {
        self.all().for_each(|session| session.receive(now, stream, message));
        self.retire(now);
    }

    /// See [`Session::tick`].
    pub fn tick(&mut self, now: Instant) {
        self.all().for_each(|session| session.tick(now));
        self.retire(now);
    }

    /// See [`Session::wake`].
    pub fn wake(&mut self, now: Instant) {
        self.current.wake(now);
    }

    /// See [`Session::hurry`].
    pub fn hurry(&mut self, now: Instant) {
        self.current.hurry(now);
    }

    /// See [`Session::take_waiter`].
    pub fn take_waiter(&mut self, id: u64) -> Option<Waiter> {
        self.current.take_waiter(id)
    }

    /// See [`Session::adopt`].
    pub fn adopt(&mut self, now: Instant, waiter: Waiter) {
        self.current.adopt(now, waiter);
    }

    /// See [`Session::take_declined`].
    pub fn take_declined(&mut self) -> Option<(Waiter, Decline)> {
        self.all().find_map(Session::take_declined)
    }

    /// See [`Session::reject_declined`].
    pub fn reject_declined(&mut self, waiter: &Waiter, rejection: Rejection) {
        self.current.reject_declined(waiter, rejection);
    }

    /// Whether the host said since the last call that it goes away.
    pub fn take_departure(&mut self) -> bool {
        core::mem::take(&mut self.departed)
    }

    /// See [`Session::poll_outcome`].
    pub fn poll_outcome(&mut self) -> Option<(RequestRef, Outcome)> {
        self.poll_loss().or_else(|| self.all().find_map(Session::poll_outcome))
    }

    /// See [`Session::poll_loss`].
    pub fn poll_loss(&mut self) -> Option<(RequestRef, Outcome)> {
        self.all().find_map(Session::poll_loss)
    }

    /// Whether [`Sessions::poll_outcome`] has one.
    pub fn has_outcome(&self) -> bool {
        self.current.has_outcome() || self.retiring.iter().any(Session::has_outcome)
    }

    /// Whether [`Sessions::poll_output`] has one.
    pub fn has_output(&self) -> bool {
        !self.closing.is_empty() || self.current.has_output() || self.retiring.iter().any(Session::has_output)
    }

    /// See [`Session::is_waking`].
    pub fn is_waking(&self) -> bool {
        self.current.is_waking()
    }

    /// See [`Session::poll_output`].
    pub fn poll_output(&mut self) -> Option<Output> {
        if let Some(stream) = self.closing.pop() {
            return Some(Output::Close(stream));
        }
        self.all().find_map(Session::poll_output)
    }

    /// See [`Session::is_busy`].
    pub fn is_busy(&self) -> bool {
        self.current.is_busy() || !self.retiring.is_empty()
    }

    /// Whether nobody waits or holds here, and the host knows it.
    #[cfg(test)]
    pub(crate) fn is_unused(&self) -> bool {
        self.current.is_unused() && self.retiring.is_empty()
    }

    /// Whether the stream is of one of the sessions.
    pub fn has_stream(&self, stream: StreamToken) -> bool {
        core::iter::once(&self.current).chain(&self.retiring).any(|session| session.stream() == Some(stream))
    }

    /// See [`Session::sign`].
    pub fn sign(&self, now: Instant) -> Sign {
        self.current.sign(now)
    }

    /// See [`Session::is_host_down`].
    pub fn is_host_down(&self) -> bool {
        self.current.is_host_down()
    }

    /// See [`Session::incarnation`].
    pub fn incarnation(&self) -> Option<&str> {
        self.current.incarnation()
    }

    /// Whether the hold of this secret is of an incarnation that goes away, and so cannot be joined any more.
    pub fn is_left(&self, secret: &[u8]) -> bool {
        let Some(leaving) = &self.leaving else { return false };
        HolderSecret::incarnation_of(secret).is_some_and(|granted_by| granted_by == *leaving)
    }

    /// See [`Session::has_room`].
    pub fn has_room(&self) -> bool {
        self.current.has_room()
    }

    /// See [`Session::waiters`].
    pub fn waiters(&self) -> impl Iterator<Item = u64> {
        self.current.waiters()
    }

    /// See [`Session::waiter`].
    pub fn waiter(&self, id: u64) -> Option<&Waiter> {
        self.current.waiter(id)
    }

    /// A session whose host goes away keeps its holds, and hands its waiters to a new one.
    fn retire(&mut self, now: Instant) {
        // What a retiring session asks again is for the host that stays.
        for session in &mut self.retiring {
            session.hand_over_waiters(now, &mut self.current);
        }
        // One with outcomes stays until they are taken: a loss that is not told aborts nothing.
        let is_over = |session: &mut Session| !session.has_outcome() && (session.is_unused() || !session.is_busy());
        for session in self.retiring.extract_if(.., is_over) {
            self.closing.extend(session.into_streams());
        }
        if self.current.is_draining() {
            self.departed = true;
            self.leaving = self.current.incarnation().map(str::to_owned).or(self.leaving.take());
            self.decline_joiners();
        }
        if self.current.is_draining() && self.retiring.len() < RETIRING_MAX {
            let successor = self.current.successor(self.names.clone(), now);
            let session = core::mem::replace(&mut self.current, successor);
            self.retiring.push(session);
        }
    }

    /// Who waits to join a hold of a host that goes away would hold up its end, and wait in vain.
    fn decline_joiners(&mut self) {
        let joins = |id: &u64| self.waiter(*id).is_some_and(|waiter| self.is_left(waiter.reentry_secret()));
        let joiners: Vec<u64> = self.waiters().filter(joins).collect();
        joiners.into_iter().for_each(|id| self.current.decline_waiter(id, Decline::NoSuchHold));
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Session> {
        core::iter::once(&mut self.current).chain(self.retiring.iter_mut())
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use prost::Message;
    use turnstile_protocol::v1::{self, RejectReason, client_item};

    use super::*;
    use crate::backoff::Jitter;
    use crate::session::TICK;

    /// All sessions, and the wire: every stream is opened as wanted, and what is said on it is kept.
    struct Bench {
        sessions: Sessions,
        now: Instant,
        streams: u32,
        said: Vec<(StreamToken, client_item::Item)>,
        closed: Vec<StreamToken>,
    }

    impl Bench {
        /// The requests 1 to `requests` have asked on stream 1.
        fn asked(requests: u32) -> Self {
            let now = Instant::from_micros(1_000_000_000);
            let names = Names { node: "node".to_owned(), worker: "worker".to_owned() };
            let sessions = Sessions::new(names, Backoff::new(Jitter::new(1)), now);
            let mut bench = Self { sessions, now, streams: 0, said: Vec::new(), closed: Vec::new() };
            for owner in 1..=requests {
                let keys = vec![v1::KeyRequest::default()];
                let ask = Ask { keys, wait: Duration::from_secs(60), ..Ask::default() };
                bench.sessions.acquire(now, RequestRef(owner), ask).expect("taken on");
            }
            bench.turn();
            bench.welcome(StreamToken(1), "first");
            assert_eq!(bench.acquires(StreamToken(1)).len(), requests as usize);
            bench
        }

        /// Opens what is wanted, and takes what is said.
        fn turn(&mut self) {
            while self.sessions.wants_stream(self.now) {
                self.streams += 1;
                self.sessions.stream_opened(self.now, StreamToken(self.streams));
            }
            while let Some(output) = self.sessions.poll_output() {
                match output {
                    Output::Close(stream) => self.closed.push(stream),
                    Output::Send(stream, message) => {
                        let message = v1::ClientMessage::decode(message.as_slice()).expect("a message");
                        self.said.extend(message.items.into_iter().filter_map(|item| Some((stream, item.item?))));
                    }
                }
            }
        }

        fn pass(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.now = self.now + TICK;
                self.sessions.tick(self.now);
                self.turn();
            }
        }

        fn hear(&mut self, stream: StreamToken, items: Vec<v1::ServerItem>) {
            self.sessions.receive(self.now, stream, &v1::ServerMessage { items }.encode_to_vec());
            self.turn();
        }

        fn welcome(&mut self, stream: StreamToken, incarnation: &str) {
            let incarnation = incarnation.to_owned();
            let welcome =
                v1::Welcome { incarnation, session_id: 7, ttl_ms: 4_000, heartbeat_ms: 1_000, ..Default::default() };
            self.hear(stream, vec![welcome.into()]);
        }

        fn acquires(&self, stream: StreamToken) -> Vec<u64> {
            let acquire = |(on, item): &(StreamToken, client_item::Item)| match item {
                client_item::Item::Acquire(acquire) if *on == stream => Some(acquire.id),
                _ => None,
            };
            self.said.iter().filter_map(acquire).collect()
        }

        /// The stream after the first on which a session was, or was not, resumed.
        fn hello(&self, resumes: bool) -> StreamToken {
            let hello = |(on, item): &(StreamToken, client_item::Item)| match item {
                client_item::Item::Hello(hello) if on.0 > 1 && hello.resume.is_some() == resumes => Some(*on),
                _ => None,
            };
            self.said.iter().find_map(hello).expect("such a Hello was said")
        }

        fn outcomes(&mut self) -> Vec<(RequestRef, Outcome)> {
            core::iter::from_fn(|| self.sessions.poll_outcome()).collect()
        }
    }

    fn grants(ids: &[u64]) -> Vec<v1::ServerItem> {
        let grant = |id: u64| v1::Grant {
            id,
            keys: vec![v1::KeyGrant { token: 100 + id, barrier: 100 + id }],
            heartbeat_seq: 1,
            valid_ms: 3_900,
            ..Default::default()
        };
        ids.iter().map(|&id| grant(id).into()).collect()
    }

    fn tokens(only: u64) -> Tokens {
        Tokens::parse(&[v1::KeyGrant { token: only, barrier: only }]).expect("there is one")
    }

    fn go_away() -> v1::ServerItem {
        v1::GoAway::default().into()
    }

    /// A host drains, is killed before its last holds have run out, and its successor does not know them.
    #[test]
    fn holds_of_a_session_that_is_ending_are_lost_aloud() {
        let mut bench = Bench::asked(40);
        let ids = bench.acquires(StreamToken(1));
        bench.hear(StreamToken(1), grants(&ids));
        for (owner, outcome) in bench.outcomes() {
            let Outcome::Granted(granted) = outcome else { panic!("{outcome:?}") };
            assert!(bench.sessions.believes(bench.now, owner, &granted.tokens));
        }
        bench.hear(StreamToken(1), vec![go_away()]);
        bench.sessions.stream_closed(bench.now, StreamToken(1));
        bench.pass(Duration::from_millis(500));
        bench.welcome(bench.hello(true), "second");
        bench.pass(TICK);
        let lost = bench.outcomes().into_iter().filter(|(_, outcome)| matches!(outcome, Outcome::Lost(_)));
        assert_eq!(lost.count(), 40);
    }

    #[test]
    fn rejections_outlive_the_session_that_brought_them() {
        let mut bench = Bench::asked(40);
        let reason = RejectReason::StoreUnavailable.into();
        let reject = |id| v1::Reject { id, reason, ..Default::default() };
        let mut items: Vec<v1::ServerItem> =
            bench.acquires(StreamToken(1)).into_iter().map(|id| reject(id).into()).collect();
        items.push(go_away());
        bench.hear(StreamToken(1), items);
        bench.hear(StreamToken(1), Vec::new());
        bench.pass(TICK);
        assert_eq!(bench.outcomes().len(), 40);
        bench.pass(TICK);
        assert!(bench.closed.contains(&StreamToken(1)), "an ended session keeps its stream");
    }

    #[test]
    fn what_a_session_that_is_ending_asks_again_is_asked_of_its_successor() {
        let mut bench = Bench::asked(1);
        let mut items = grants(&bench.acquires(StreamToken(1)));
        items.push(go_away());
        bench.hear(StreamToken(1), items);
        let outcomes = bench.outcomes();
        let [(owner, Outcome::Granted(granted))] = &outcomes[..] else { panic!("{outcomes:?}") };
        // The worker was frozen between the grant and its use.
        bench.now = bench.now + Duration::from_millis(3_950);
        assert!(!bench.sessions.believes(bench.now, *owner, &granted.tokens));
        bench.pass(Duration::from_millis(500));
        let successor = bench.hello(false);
        bench.welcome(successor, "first");
        assert_eq!(bench.acquires(successor).len(), 1);
        assert_eq!(bench.outcomes(), []);
    }

    #[test]
    fn a_number_is_not_granted_under_an_older_token() {
        let mut bench = Bench::asked(1);
        let ids = bench.acquires(StreamToken(1));
        bench.hear(StreamToken(1), grants(&ids));
        assert!(!bench.sessions.believes(bench.now, RequestRef(1), &tokens(99)), "another token than the hold's");
        assert!(bench.sessions.believes(bench.now, RequestRef(1), &tokens(100 + ids[0])));
    }

    #[test]
    fn a_reason_that_only_newer_hosts_know_is_no_absence_of_a_host() {
        let mut bench = Bench::asked(1);
        let id = bench.acquires(StreamToken(1))[0];
        bench.hear(StreamToken(1), vec![v1::Reject { id, reason: 77, ..Default::default() }.into()]);
        assert_eq!(bench.outcomes(), [(RequestRef(1), Outcome::Rejected(Rejection::Invalid))]);
    }

    #[test]
    fn losses_are_told_before_grants() {
        let mut bench = Bench::asked(2);
        let ids = bench.acquires(StreamToken(1));
        bench.hear(StreamToken(1), grants(&ids[..1]));
        let outcomes = bench.outcomes();
        assert!(bench.sessions.believes(bench.now, outcomes[0].0, &tokens(100 + ids[0])));
        let mut items = grants(&ids[1..]);
        items.push(v1::Lost { id: ids[0], ..Default::default() }.into());
        bench.hear(StreamToken(1), items);
        assert!(matches!(bench.outcomes()[..], [(_, Outcome::Lost(_)), (_, Outcome::Granted(_))]));
    }
}
