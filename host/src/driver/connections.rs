//! The streams of sessions: which one is current, what is to be sent on it, and how much may pile up.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use turnstile_core::{EndReason, HeartbeatSeq, Input, RequestId, SessionId};
use turnstile_protocol::{NAME_MAX_BYTES, VERSION, v1};

use super::Client;
use crate::wire::{self, ParsedResume};

/// Items that may wait for a slow reader; past them its stream is closed (and the session suspended).
const OUTBOUND_ITEMS_MAX: usize = 65_536;

/// Items in one message: far below the size at which the other side refuses it.
const MESSAGE_ITEMS_MAX: usize = 4_096;

/// Counts the streams of one session.
type Generation = u64;

/// A stream's request to become a session's current one.
#[derive(Debug)]
pub struct Open {
    /// The first item of the stream.
    pub hello: v1::Hello,
    /// Where its answers go.
    pub outbound: Outbound,
    /// Dropped when the driver gives the stream up.
    pub alive: oneshot::Sender<()>,
    /// Told which stream it is.
    pub reply: oneshot::Sender<Result<Opened, Refusal>>,
}

/// An established stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its session.
    pub session: SessionId,
    /// Its place among the streams of that session.
    pub generation: u64,
}

/// Why a Hello was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The client is too new or too old.
    #[error("this host speaks version {VERSION} of the session protocol, the client version {0}")]
    Version(u32),
    /// A newer stream of the session is already there.
    #[error("the session has a stream of generation {0} already")]
    Superseded(u64),
    /// Not a message of this protocol.
    #[error("{0}")]
    Malformed(&'static str),
    /// The system's random source failed.
    #[error("no randomness for a session id")]
    NoRandomness,
}

/// The sending end of one stream.
#[derive(Clone, Debug)]
pub struct Outbound {
    messages: mpsc::UnboundedSender<Result<v1::ServerMessage, tonic::Status>>,
    queued_items: Arc<AtomicUsize>,
}

/// The stream that tonic reads.
#[derive(Debug)]
pub struct OutboundStream {
    messages: mpsc::UnboundedReceiver<Result<v1::ServerMessage, tonic::Status>>,
    queued_items: Arc<AtomicUsize>,
}

/// A channel that never blocks its sender, and counts what its reader leaves lying.
pub fn outbound() -> (Outbound, OutboundStream) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let queued_items = Arc::new(AtomicUsize::new(0));
    (
        Outbound { messages: sender, queued_items: Arc::clone(&queued_items) },
        OutboundStream { messages: receiver, queued_items },
    )
}

impl Outbound {
    /// Ends the stream with an error.
    pub fn fail(&self, status: tonic::Status) {
        // The reader may be gone, and then nobody needs the reason.
        let _ = self.messages.send(Err(status));
    }

    pub(crate) fn send(&self, items: Vec<v1::ServerItem>) {
        self.queued_items.fetch_add(items.len(), Ordering::Relaxed);
        let _ = self.messages.send(Ok(v1::ServerMessage { items }));
    }

    fn queued(&self) -> usize {
        self.queued_items.load(Ordering::Relaxed)
    }
}

impl Stream for OutboundStream {
    type Item = Result<v1::ServerMessage, tonic::Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let message = std::task::ready!(self.messages.poll_recv(context));
        if let Some(Ok(message)) = &message {
            self.queued_items.fetch_sub(message.items.len(), Ordering::Relaxed);
        }
        Poll::Ready(message)
    }
}

/// A session as the driver sees it; the engine has the same ones.
struct Connection {
    client: Client,
    generation: Generation,
    stream: CurrentStream,
    pending: Vec<v1::ServerItem>,
}

/// The stream of a session.
enum CurrentStream {
    Open {
        outbound: Outbound,
        /// Dropped to give the stream up; its own task then reports its end, and the session is suspended.
        _alive: oneshot::Sender<()>,
    },
    /// Given up by us: nothing is sent on it any more, and its end is yet to be reported.
    CutOff,
    /// There is none: the session is suspended.
    None,
}

impl Connection {
    /// Gives the stream up. What its reader was not sent, a resume tells again.
    fn cut_off(&mut self, session: SessionId) {
        if let CurrentStream::Open { outbound, .. } = std::mem::replace(&mut self.stream, CurrentStream::CutOff) {
            tracing::warn!(session = session.0, "a stream is closed: its reader is too slow");
            outbound.fail(tonic::Status::resource_exhausted("too much unread output"));
        }
        self.pending = Vec::new();
    }
}

/// A Hello that is let in.
struct Admitted {
    opened: Opened,
    input: Input,
    /// Waiters of a resume that could not be understood.
    refused: Vec<(RequestId, v1::RejectReason)>,
}

/// All sessions, connected or suspended.
pub(super) struct Connections {
    welcome: v1::Welcome,
    draining: Option<&'static str>,
    by_session: HashMap<SessionId, Connection>,
    /// Sessions with something in `pending`.
    unsent: Vec<SessionId>,
}

impl Connections {
    pub(super) fn new(welcome: v1::Welcome) -> Self {
        Self { welcome, draining: None, by_session: HashMap::new(), unsent: Vec::new() }
    }

    /// Welcomes or refuses a stream; the input tells the engine.
    pub(super) fn open(&mut self, open: Open) -> Option<Input> {
        let Open { hello, outbound, alive, reply } = open;
        let client = Client { node: hello.node.clone(), worker: hello.worker.clone() };
        match self.admit(hello) {
            Err(refusal) => {
                let _ = reply.send(Err(refusal));
                None
            }
            Ok(Admitted { opened, input, refused }) => {
                let resumed = matches!(input, Input::ResumeSession { .. });
                let connection = Connection {
                    client,
                    generation: opened.generation,
                    stream: CurrentStream::Open { outbound, _alive: alive },
                    // What was meant for an older stream must not arrive on this one: its anchors are of that one.
                    pending: Vec::new(),
                };
                self.by_session.insert(opened.session, connection);
                let welcome = v1::Welcome { session_id: opened.session.0, resumed, ..self.welcome.clone() };
                self.send(opened.session, welcome);
                for (request, reason) in refused {
                    self.send(opened.session, wire::reject(request, reason, None, 0));
                }
                if let Some(reason) = self.draining {
                    self.send(opened.session, v1::GoAway { reason: reason.into() });
                }
                let _ = reply.send(Ok(opened));
                Some(input)
            }
        }
    }

    fn admit(&self, hello: v1::Hello) -> Result<Admitted, Refusal> {
        if hello.protocol_version != VERSION {
            return Err(Refusal::Version(hello.protocol_version));
        }
        if hello.node.len() > NAME_MAX_BYTES || hello.worker.len() > NAME_MAX_BYTES {
            return Err(Refusal::Malformed("a node's or worker's name of more than 256 bytes"));
        }
        let seq = HeartbeatSeq(hello.heartbeat_seq);
        let generation = hello.generation;
        if let Some(resume) = hello.resume.filter(|resume| resume.incarnation == self.welcome.incarnation) {
            let session = SessionId(resume.session_id);
            if let Some(connection) = self.by_session.get(&session) {
                if generation <= connection.generation {
                    return Err(Refusal::Superseded(connection.generation));
                }
                let ParsedResume { beliefs, refused } = wire::parse_resume(resume).map_err(Refusal::Malformed)?;
                let input = Input::ResumeSession { session, seq, resume: beliefs };
                return Ok(Admitted { opened: Opened { session, generation }, input, refused });
            }
        }
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(|_| Refusal::NoRandomness)?;
        let session = SessionId(u64::from_ne_bytes(id));
        let input = Input::OpenSession { session, seq };
        Ok(Admitted { opened: Opened { session, generation }, input, refused: Vec::new() })
    }

    /// Who is at the other end.
    pub(super) fn client(&self, session: SessionId) -> Option<&Client> {
        self.by_session.get(&session).map(|connection| &connection.client)
    }

    pub(super) fn is_current(&self, opened: Opened) -> bool {
        self.by_session.get(&opened.session).is_some_and(|connection| {
            connection.generation == opened.generation && !matches!(connection.stream, CurrentStream::None)
        })
    }

    /// Forgets the stream; tells whether it was the current one of its session.
    pub(super) fn close(&mut self, opened: Opened) -> bool {
        let current = self.is_current(opened);
        if current && let Some(connection) = self.by_session.get_mut(&opened.session) {
            connection.stream = CurrentStream::None;
            connection.pending.clear();
        }
        current
    }

    /// Queues an item for the session's stream; dropped if it has none (a resume will tell it again).
    pub(super) fn send(&mut self, session: SessionId, item: impl Into<v1::ServerItem>) {
        let Some(connection) = self.by_session.get_mut(&session) else { return };
        let CurrentStream::Open { outbound, .. } = &connection.stream else { return };
        if outbound.queued() + connection.pending.len() >= OUTBOUND_ITEMS_MAX {
            return connection.cut_off(session);
        }
        if connection.pending.is_empty() {
            self.unsent.push(session);
        }
        connection.pending.push(item.into());
    }

    /// Sends what is queued, one message a session and turn.
    pub(super) fn flush(&mut self) {
        for session in std::mem::take(&mut self.unsent) {
            let Some(connection) = self.by_session.get_mut(&session) else { continue };
            let mut pending = std::mem::take(&mut connection.pending);
            let CurrentStream::Open { outbound, .. } = &connection.stream else { continue };
            while !pending.is_empty() {
                let rest = pending.split_off(pending.len().min(MESSAGE_ITEMS_MAX));
                outbound.send(std::mem::replace(&mut pending, rest));
            }
        }
    }

    /// Tells every session, and every later one, to go elsewhere.
    pub(super) fn go_away(&mut self, reason: &'static str) {
        self.draining = Some(reason);
        let sessions: Vec<SessionId> = self.by_session.keys().copied().collect();
        for session in sessions {
            self.send(session, v1::GoAway { reason: reason.into() });
        }
    }

    /// The engine is done with the session.
    pub(super) fn end(&mut self, session: SessionId, reason: EndReason) {
        let Some(connection) = self.by_session.remove(&session) else { return };
        if let CurrentStream::Open { outbound, .. } = connection.stream {
            outbound.fail(match reason {
                EndReason::Expired => tonic::Status::deadline_exceeded("no heartbeat within the session's TTL"),
                EndReason::TooMany => {
                    tonic::Status::resource_exhausted("this host has as many sessions as it may have")
                }
                EndReason::Unknown => tonic::Status::aborted("the session is over"),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    struct Client {
        opened: Opened,
        stream: OutboundStream,
        given_up: oneshot::Receiver<()>,
    }

    fn open(connections: &mut Connections, hello: v1::Hello) -> Result<Client, Refusal> {
        let (outbound, stream) = outbound();
        let (alive, given_up) = oneshot::channel();
        let (reply, mut answer) = oneshot::channel();
        let hello = v1::Hello { protocol_version: VERSION, generation: 1, ..hello };
        connections.open(Open { hello, outbound, alive, reply });
        Ok(Client { opened: answer.try_recv().unwrap()?, stream, given_up })
    }

    #[tokio::test]
    async fn a_reader_that_is_too_slow_is_cut_off_and_sent_nothing_more() {
        let mut connections = Connections::new(v1::Welcome::default());
        let Client { opened, mut stream, mut given_up } = open(&mut connections, v1::Hello::default()).unwrap();
        let ack = v1::HeartbeatAck { seq: 1, valid_ms: 1 };
        // Half of it flushed, half of it within one turn; the Welcome is one of them.
        for index in 1..OUTBOUND_ITEMS_MAX {
            connections.send(opened.session, ack);
            if index == OUTBOUND_ITEMS_MAX / 2 {
                connections.flush();
            }
        }
        assert!(given_up.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        connections.send(opened.session, ack);
        assert!(given_up.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        connections.send(opened.session, ack);
        connections.flush();
        assert!(connections.is_current(opened), "its end is yet to be reported");

        let mut items = 0;
        let status = loop {
            match stream.next().await.unwrap() {
                Ok(message) => items += message.items.len(),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(items, OUTBOUND_ITEMS_MAX / 2 + 1);
        assert!(stream.next().await.is_none(), "nothing comes after the error");
        assert!(connections.close(opened), "the session is to be suspended");
        assert!(!connections.close(opened));
    }

    #[test]
    fn a_name_too_long_is_refused() {
        let mut connections = Connections::new(v1::Welcome::default());
        let name = |length| "x".repeat(length);
        assert!(
            open(&mut connections, v1::Hello { node: name(256), worker: name(256), ..v1::Hello::default() }).is_ok()
        );
        for hello in [
            v1::Hello { node: name(257), ..v1::Hello::default() },
            v1::Hello { worker: name(257), ..v1::Hello::default() },
        ] {
            assert!(matches!(open(&mut connections, hello), Err(Refusal::Malformed(_))));
        }
    }
}
