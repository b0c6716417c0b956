//! Speaks the session protocol with a host directly: as a well-behaved client, or item by item.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};
use turnstile_protocol::VERSION;
use turnstile_protocol::v1::lock_service_client::LockServiceClient;
use turnstile_protocol::v1::{
    Acquire, Cancel, ClientItem, ClientMessage, Ending, Heartbeat, Hello, KeyRequest, Mode, Reject, RejectReason,
    Release, ServerItem, ServerMessage, Welcome, server_item::Item,
};

use crate::wait::PATIENCE;

/// One stream, without any manners: sends what it is told to, and returns what comes.
pub struct RawSession {
    outbound: mpsc::Sender<ClientMessage>,
    inbound: Streaming<ServerMessage>,
    pending: std::vec::IntoIter<ServerItem>,
}

impl RawSession {
    /// Opens a stream with a first message.
    ///
    /// # Errors
    /// What the host answers when it does not take the stream.
    pub async fn open(host: SocketAddr, first: ClientMessage) -> Result<Self, Status> {
        let channel = Endpoint::from_shared(format!("http://{host}")).expect("a socket address is an authority");
        let channel = channel.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let (outbound, messages) = mpsc::channel(64);
        outbound.send(first).await.expect("the receiver is at hand");
        let mut client = LockServiceClient::new(channel).max_encoding_message_size(usize::MAX);
        let response = client.session(ReceiverStream::new(messages)).await?;
        Ok(Self { outbound, inbound: response.into_inner(), pending: Vec::new().into_iter() })
    }

    /// Sends one item in a message of its own. Nothing happens if the stream has ended.
    pub async fn send(&self, item: impl Into<ClientItem>) {
        self.send_all(vec![item.into()]).await;
    }

    /// Sends items in one message. Nothing happens if the stream has ended.
    pub async fn send_all(&self, items: Vec<ClientItem>) {
        let _ = self.outbound.send(ClientMessage { items }).await;
    }

    /// The next message with all its items, of which none was taken by [`Self::next`].
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn message(&mut self) -> Result<ServerMessage, Status> {
        match self.inbound.message().await? {
            Some(message) => Ok(message),
            None => Err(Status::new(Code::Ok, "the stream ended")),
        }
    }

    /// The next item, or why there is none.
    ///
    /// # Errors
    /// The host's verdict when it ended the stream; `Ok` (0) as a status if it ended it without any.
    ///
    /// # Panics
    /// If nothing comes for [`PATIENCE`].
    pub async fn next(&mut self) -> Result<Item, Status> {
        loop {
            if let Some(item) = self.pending.next() {
                return Ok(item.item.expect("the host sends no empty items"));
            }
            let message = tokio::time::timeout(PATIENCE, self.inbound.message()).await;
            match message.expect("the host says something, or ends the stream")? {
                Some(message) => self.pending = message.items.into_iter(),
                None => return Err(Status::new(Code::Ok, "the stream ended")),
            }
        }
    }

    /// Reads on until the host ends the stream, and returns its verdict.
    pub async fn verdict(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }
}

/// A correct first item.
pub fn hello(node: &str) -> Hello {
    Hello {
        protocol_version: VERSION,
        node: node.to_owned(),
        worker: "0".to_owned(),
        generation: 1,
        heartbeat_seq: 1,
        resume: None,
    }
}

/// A message of one item.
pub fn message(item: impl Into<ClientItem>) -> ClientMessage {
    ClientMessage { items: vec![item.into()] }
}

/// A correct request for one exclusive lock, without waiting.
pub fn acquire(id: u64, key: &str) -> Acquire {
    let key = KeyRequest { key: key.to_owned(), mode: Mode::Exclusive.into(), limit: 0 };
    Acquire { id, keys: vec![key], ..Acquire::default() }
}

/// A session that keeps itself alive and matches answers with requests.
pub struct Session {
    outbound: mpsc::Sender<ClientMessage>,
    answers: Arc<Answers>,
    next: tokio::sync::Mutex<u64>,
    welcome: Welcome,
    ended: watch::Receiver<Option<Status>>,
    acked: watch::Receiver<u64>,
}

type Answers = Mutex<HashMap<u64, oneshot::Sender<Result<Granted, Reject>>>>;

/// A lock that is held.
#[derive(Clone, Debug)]
pub struct Granted {
    /// The id of the request.
    pub id: u64,
    /// Its fencing token.
    pub token: u64,
    /// How long it waited, as the host says.
    pub waited: Duration,
}

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Want<'a> {
    /// The whole key, `namespace/name`.
    pub key: &'a str,
    /// How long to wait; zero is a try.
    pub wait: Duration,
    /// The quarantine after an unclean end.
    pub lock_delay: Duration,
}

impl Session {
    /// Opens a session.
    ///
    /// # Panics
    /// If the host does not take it.
    pub async fn open(host: SocketAddr, node: &str) -> Self {
        let mut raw = RawSession::open(host, message(hello(node))).await.expect("the host takes a session");
        let Ok(Item::Welcome(welcome)) = raw.next().await else { panic!("a Hello is answered with a Welcome") };
        let answers = Arc::new(Answers::default());
        let (end, ended) = watch::channel(None);
        let (ack, acked) = watch::channel(0);
        let outbound = raw.outbound.clone();
        let every = Duration::from_millis(u64::from(welcome.heartbeat_ms));
        tokio::spawn(beat(outbound.clone(), every));
        tokio::spawn(receive(raw, Arc::clone(&answers), ack, end));
        Self { outbound, answers, next: tokio::sync::Mutex::new(1), welcome, ended, acked }
    }

    /// What the host said in the beginning.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Asks for a lock and returns when the host has answered.
    ///
    /// # Errors
    /// The host's rejection.
    ///
    /// # Panics
    /// If the session ends before.
    pub async fn acquire(&self, want: Want<'_>) -> Result<Granted, Reject> {
        // Ids must grow in the order in which they are sent, so the lock is held until this one is on its way.
        let mut next = self.next.lock().await;
        let id = *next;
        *next += 1;
        let (answer, answered) = oneshot::channel();
        self.answers.lock().expect("no panics inside").insert(id, answer);
        let ms = |duration: Duration| u32::try_from(duration.as_millis()).expect("less than 49 days");
        let request = Acquire { wait_ms: ms(want.wait), lock_delay_ms: ms(want.lock_delay), ..acquire(id, want.key) };
        self.send(request).await;
        drop(next);
        match answered.await {
            Ok(answer) => answer,
            Err(_) => panic!("the session ended before {} was answered: {:?}", want.key, *self.ended.borrow()),
        }
    }

    /// Ends a hold.
    pub async fn release(&self, granted: &Granted, ending: Ending) {
        self.send(Release { id: granted.id, ending: ending.into() }).await;
    }

    /// Withdraws a request.
    pub async fn cancel(&self, id: u64) {
        self.send(Cancel { id }).await;
    }

    /// Whether the lock could be had at once. It is given back at once if so.
    ///
    /// # Panics
    /// If the host rejects for another reason than a conflict.
    pub async fn is_free(&self, key: &str) -> bool {
        match self.acquire(Want { key, wait: Duration::ZERO, lock_delay: Duration::ZERO }).await {
            Ok(granted) => {
                self.release(&granted, Ending::Unsent).await;
                true
            }
            Err(reject) => {
                assert_eq!(reject.reason(), RejectReason::Conflict, "{key}: {reject:?}");
                false
            }
        }
    }

    /// How many requests wait for a lock that is held.
    ///
    /// # Panics
    /// If the lock is free.
    pub async fn queue_length(&self, key: &str) -> u32 {
        let tried = self.acquire(Want { key, wait: Duration::ZERO, lock_delay: Duration::ZERO }).await;
        tried.expect_err("the lock is held, so a try fails").queue_length
    }

    /// Waits until the host has processed all that was sent before.
    ///
    /// # Panics
    /// If the session ends before.
    pub async fn settled(&self) {
        let mut acked = self.acked.clone();
        let now = *acked.borrow();
        // The next ack may be for a heartbeat that was sent before; the one after it is not.
        acked.wait_for(|seq| *seq > now + 1).await.expect("the session goes on");
    }

    /// Why the host ended the session, if it did.
    pub fn ended(&self) -> Option<Status> {
        self.ended.borrow().clone()
    }

    async fn send(&self, item: impl Into<ClientItem>) {
        let _ = self.outbound.send(message(item)).await;
    }
}

async fn beat(outbound: mpsc::Sender<ClientMessage>, every: Duration) {
    let mut seq = 1;
    loop {
        tokio::time::sleep(every).await;
        seq += 1;
        if outbound.send(message(Heartbeat { seq })).await.is_err() {
            return;
        }
    }
}

async fn receive(
    mut raw: RawSession,
    answers: Arc<Answers>,
    ack: watch::Sender<u64>,
    end: watch::Sender<Option<Status>>,
) {
    let answer = |id, answer| {
        if let Some(waiting) = answers.lock().expect("no panics inside").remove(&id) {
            let _ = waiting.send(answer);
        }
    };
    // Not `RawSession::next`, which would insist on hearing something within its patience.
    let status = loop {
        let message = match raw.inbound.message().await {
            Ok(Some(message)) => message,
            Ok(None) => break Status::new(Code::Ok, "the stream ended"),
            Err(status) => break status,
        };
        for item in message.items {
            match item.item {
                Some(Item::Grant(grant)) => {
                    let token = grant.keys.first().expect("a grant has a token for each key").token;
                    let waited = Duration::from_millis(u64::from(grant.waited_ms));
                    answer(grant.id, Ok(Granted { id: grant.id, token, waited }));
                }
                Some(Item::Reject(reject)) => answer(reject.id, Err(reject)),
                Some(Item::HeartbeatAck(beat)) => drop(ack.send_replace(beat.seq)),
                _ => {}
            }
        }
    };
    end.send_replace(Some(status));
    answers.lock().expect("no panics inside").clear();
}
