//! The session in use, and those that end while their last holds run out because their host goes away.

use core::time::Duration;

use turnstile_protocol::v1::Ending;

use crate::backoff::Backoff;
use crate::clock::Instant;
use crate::session::{Ask, Names, Outcome, Output, Rejection, RequestRef, Session, StreamToken};

/// Sessions that may be ending at once; past that, waiters wait until one has ended.
const RETIRING_MAX: usize = 4;

/// All sessions of one filter in one worker. Its methods are those of [`Session`].
#[derive(Debug)]
pub struct Sessions {
    names: Names,
    current: Session,
    retiring: Vec<Session>,
    closing: Vec<StreamToken>,
}

impl Sessions {
    /// One session, without a stream.
    pub fn new(names: Names, backoff: Backoff, now: Instant) -> Self {
        let current = Session::new(names.clone(), backoff, now);
        Self { names, current, retiring: Vec::new(), closing: Vec::new() }
    }

    /// See [`Session::acquire`].
    pub fn acquire(&mut self, now: Instant, owner: RequestRef, ask: Ask) -> Result<(), Rejection> {
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
    pub fn believes(&mut self, now: Instant, owner: RequestRef) -> bool {
        self.all().any(|session| session.believes(now, owner))
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

    /// See [`Session::poll_outcome`].
    pub fn poll_outcome(&mut self) -> Option<(RequestRef, Outcome)> {
        self.all().find_map(Session::poll_outcome)
    }

    /// Whether [`Sessions::poll_outcome`] has one.
    pub fn has_outcome(&self) -> bool {
        self.current.has_outcome() || self.retiring.iter().any(Session::has_outcome)
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

    /// How long a request that is turned away now had better stay away.
    pub fn retry_after(&self) -> Option<Duration> {
        self.current.is_host_down().then_some(Backoff::LAST)
    }

    /// A session whose host goes away keeps its holds, and hands its waiters to a new one.
    fn retire(&mut self, now: Instant) {
        for session in self.retiring.extract_if(.., |session| session.is_unused() || !session.is_busy()) {
            self.closing.extend(session.stream());
        }
        if self.current.is_draining() && self.retiring.len() < RETIRING_MAX {
            let successor = self.current.successor(self.names.clone(), now);
            let session = core::mem::replace(&mut self.current, successor);
            self.retiring.push(session);
        }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Session> {
        core::iter::once(&mut self.current).chain(self.retiring.iter_mut())
    }
}
