//! A host that does as the test tells it, and writes down every word of the filter: it shows exactly how and how
//! often a hold was ended, which a real host does not tell.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use turnstile_protocol::v1::lock_service_server::{LockService, LockServiceServer};
use turnstile_protocol::v1::{
    Acquire, ClientMessage, Ending, Grant, HeartbeatAck, KeyGrant, Limits, Lost, LostReason, Reject, RejectReason,
    ServerItem, ServerMessage, Welcome, client_item::Item,
};
use turnstile_protocol::{HOLDER_SECRET_BYTES, KEY_MAX_BYTES, KEYS_PER_ACQUIRE_MAX, MESSAGE_MAX_BYTES, VERSION};

use crate::wait::PATIENCE;

/// How the filter ended its interest in a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It gave up waiting.
    Cancelled,
    /// It released the hold.
    Released(Ending),
}

/// One request for a lock, and all that was said about it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What the filter sent.
    pub acquire: Acquire,
    /// When the host granted it.
    pub granted: Option<Instant>,
    /// The fencing token that it granted.
    pub token: Option<u64>,
    /// Every Cancel and Release that followed.
    pub ended: Vec<(Instant, Ended)>,
    stream: usize,
}

impl Asked {
    /// The key of the request.
    pub fn key(&self) -> &str {
        self.acquire.keys.first().map_or("", |key| key.key.as_str())
    }
}

/// What the host answers to an Acquire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A grant at once, to be believed in for this long.
    Grant(Duration),
    /// Nothing, until the test says so.
    Nothing,
    /// A rejection.
    Reject(RejectReason),
}

/// A running host.
pub struct ScriptedHost {
    /// Where sessions are served.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

/// How long a promise is good unless a test says otherwise.
pub const VALID: Duration = Duration::from_secs(60);

type Script = dyn Fn(&Acquire) -> Answer + Send + Sync;

struct Shared {
    script: Box<Script>,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    asked: Vec<Asked>,
    streams: Vec<StreamState>,
    last_token: u64,
    deaf: bool,
}

struct StreamState {
    outbound: mpsc::Sender<Result<ServerMessage, Status>>,
    heartbeat_seq: u64,
}

impl ScriptedHost {
    /// Starts a host that answers each Acquire as `script` says.
    ///
    /// # Panics
    /// If no port can be bound.
    pub async fn start(script: impl Fn(&Acquire) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port can be bound");
        let address = listener.local_addr().expect("a listener has an address");
        let (state, changed) = (Mutex::default(), watch::Sender::new(()));
        let shared = Arc::new(Shared { script: Box::new(script), state, changed });
        let service = LockServiceServer::new(Service(Arc::clone(&shared)));
        let serve = Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { serve.await.expect("the scripted host serves") });
        Self { address, shared, server }
    }

    /// Everything that was asked for this key, in order.
    pub fn asked(&self, key: &str) -> Vec<Asked> {
        self.shared.lock().asked.iter().filter(|asked| asked.key() == key).cloned().collect()
    }

    /// Waits until what was asked for this key satisfies `enough`.
    ///
    /// # Panics
    /// If it never does.
    pub async fn saw(&self, key: &str, what: &str, enough: impl Fn(&[Asked]) -> bool) -> Vec<Asked> {
        let mut changes = self.shared.changed.subscribe();
        let look = async {
            loop {
                let asked = self.asked(key);
                if enough(&asked) {
                    return asked;
                }
                changes.changed().await.expect("the state outlives the host");
            }
        };
        match tokio::time::timeout(PATIENCE, look).await {
            Ok(asked) => asked,
            Err(_) => panic!("{key}: never saw {what}; saw {:#?}", self.asked(key)),
        }
    }

    /// Waits until the lock has been asked for.
    pub async fn was_asked(&self, key: &str) -> Asked {
        self.saw(key, "an Acquire", |asked| !asked.is_empty()).await.remove(0)
    }

    /// Waits until the first request for the key has been ended, and returns how.
    pub async fn was_ended(&self, key: &str) -> Ended {
        let asked = self.saw(key, "an end", |asked| asked.iter().any(|asked| !asked.ended.is_empty())).await;
        asked[0].ended[0].1
    }

    /// Grants what was asked, now.
    pub async fn grant(&self, asked: &Asked, valid: Duration) {
        let (outbound, grant) = self.shared.make_grant(asked.stream, &asked.acquire, valid);
        send(&outbound, grant).await;
    }

    /// Takes a granted lock back.
    pub async fn lose(&self, asked: &Asked, reason: LostReason) {
        let outbound = self.shared.lock().streams[asked.stream].outbound.clone();
        send(&outbound, Lost { id: asked.acquire.id, reason: reason.into() }).await;
    }

    /// Waits until every live stream has sent this many more heartbeats: all that was sent before has arrived by then.
    ///
    /// # Panics
    /// If they do not come.
    pub async fn heartbeats_pass(&self, count: u64) {
        let beats = |state: &State| -> Vec<(usize, u64)> {
            let open = state.streams.iter().enumerate().filter(|(_, stream)| !stream.outbound.is_closed());
            open.map(|(index, stream)| (index, stream.heartbeat_seq)).collect()
        };
        let mut changes = self.shared.changed.subscribe();
        let before = beats(&self.shared.lock());
        let passed = |state: &State| {
            before.iter().all(|(index, seq)| {
                let stream = &state.streams[*index];
                stream.outbound.is_closed() || stream.heartbeat_seq >= seq + count
            })
        };
        let look = async {
            while !passed(&self.shared.lock()) {
                changes.changed().await.expect("the state outlives the host");
            }
        };
        assert!(tokio::time::timeout(PATIENCE, look).await.is_ok(), "no more heartbeats");
    }

    /// From now on heartbeats are not answered.
    pub fn go_deaf(&self) {
        self.shared.lock().deaf = true;
    }
}

impl Drop for ScriptedHost {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Service(Arc<Shared>);

#[tonic::async_trait]
impl LockService for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<ClientMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbound, messages) = mpsc::channel(1024);
        let stream = {
            let mut state = self.0.lock();
            state.streams.push(StreamState { outbound: outbound.clone(), heartbeat_seq: 0 });
            state.streams.len() - 1
        };
        let shared = Arc::clone(&self.0);
        let mut inbound = request.into_inner();
        tokio::spawn(async move {
            while let Some(Ok(message)) = inbound.next().await {
                for item in message.items.into_iter().filter_map(|item| item.item) {
                    if let Some(answer) = shared.take(stream, item) {
                        send(&outbound, answer).await;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with the state in its hands")
    }

    fn take(&self, stream: usize, item: Item) -> Option<ServerItem> {
        let answer = match item {
            Item::Hello(hello) => {
                self.lock().streams[stream].heartbeat_seq = hello.heartbeat_seq;
                Some(welcome(stream).into())
            }
            Item::Heartbeat(heartbeat) => self.beat(stream, heartbeat.seq),
            Item::Acquire(acquire) => self.ask(stream, acquire),
            Item::Cancel(cancel) => self.end(stream, cancel.id, Ended::Cancelled),
            Item::Release(release) => self.end(stream, release.id, Ended::Released(release.ending())),
        };
        self.changed.send_replace(());
        answer
    }

    fn beat(&self, stream: usize, seq: u64) -> Option<ServerItem> {
        let mut state = self.lock();
        state.streams[stream].heartbeat_seq = seq;
        (!state.deaf).then(|| HeartbeatAck { seq, valid_ms: ms(VALID) }.into())
    }

    fn ask(&self, stream: usize, acquire: Acquire) -> Option<ServerItem> {
        let answer = (self.script)(&acquire);
        let id = acquire.id;
        self.lock().asked.push(Asked {
            acquire: acquire.clone(),
            granted: None,
            token: None,
            ended: Vec::new(),
            stream,
        });
        match answer {
            Answer::Grant(valid) => Some(self.make_grant(stream, &acquire, valid).1),
            Answer::Nothing => None,
            Answer::Reject(reason) => Some(Reject { id, reason: reason.into(), ..Reject::default() }.into()),
        }
    }

    fn end(&self, stream: usize, id: u64, ended: Ended) -> Option<ServerItem> {
        let mut state = self.lock();
        let asked = state.asked.iter_mut().find(|asked| asked.stream == stream && asked.acquire.id == id);
        asked.expect("the filter ends only what it asked for").ended.push((Instant::now(), ended));
        None
    }

    fn make_grant(
        &self,
        stream: usize,
        acquire: &Acquire,
        valid: Duration,
    ) -> (mpsc::Sender<Result<ServerMessage, Status>>, ServerItem) {
        let state = &mut *self.lock();
        let mut keys = Vec::new();
        for _ in &acquire.keys {
            state.last_token += 1;
            keys.push(KeyGrant { token: state.last_token, barrier: state.last_token });
        }
        let asked = state.asked.iter_mut().find(|asked| asked.stream == stream && asked.acquire.id == acquire.id);
        let asked = asked.expect("only what was asked is granted");
        (asked.granted, asked.token) = (Some(Instant::now()), Some(state.last_token));
        let StreamState { outbound, heartbeat_seq } = &state.streams[stream];
        let (heartbeat_seq, valid_ms) = (*heartbeat_seq, ms(valid));
        let holder_secret =
            if acquire.reentrant { vec![0xa5; HOLDER_SECRET_BYTES] } else { acquire.reentry_secret.clone() };
        let grant = Grant { id: acquire.id, keys, holder_secret, heartbeat_seq, valid_ms, waited_ms: 0 };
        (outbound.clone(), grant.into())
    }
}

fn welcome(stream: usize) -> Welcome {
    Welcome {
        protocol_version: VERSION,
        incarnation: "scripted".to_owned(),
        session_id: stream as u64 + 1,
        resumed: false,
        ttl_ms: ms(VALID),
        heartbeat_ms: 200,
        limits: Some(Limits {
            key_max_bytes: KEY_MAX_BYTES as u32,
            keys_per_acquire_max: KEYS_PER_ACQUIRE_MAX as u32,
            waiters_per_session_max: 10_000,
            message_max_bytes: MESSAGE_MAX_BYTES as u32,
        }),
    }
}

fn ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).expect("less than 49 days")
}

async fn send(outbound: &mpsc::Sender<Result<ServerMessage, Status>>, item: impl Into<ServerItem>) {
    let _ = outbound.send(Ok(ServerMessage { items: vec![item.into()] })).await;
}
