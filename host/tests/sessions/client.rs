//! A host in this process, and clients of its port: streams with what they say and hear.

use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use turnstile_host::config::{Config, Overrides};
use turnstile_host::service::{Host, Stopped};
use turnstile_protocol::VERSION;
use turnstile_protocol::v1::lock_service_client::LockServiceClient;
use turnstile_protocol::v1::server_item::Item;
use turnstile_protocol::v1::{
    Acquire, ClientItem, ClientMessage, Ending, Grant, Heartbeat, Hello, KeyRequest, Mode, RejectReason, Release,
    Resume, Welcome,
};

/// Long enough for a loaded machine; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Running {
    pub(crate) address: String,
    pub(crate) stop: oneshot::Sender<()>,
    pub(crate) stopped: JoinHandle<Stopped>,
}

pub(crate) async fn start(directory: &TempDir, more: &str) -> Running {
    let overrides = Overrides {
        listen: Some(([127, 0, 0, 1], 0).into()),
        admin_listen: Some(([127, 0, 0, 1], 0).into()),
        api_listen: Some(([127, 0, 0, 1], 0).into()),
        database: Some(directory.path().join("locks.db")),
    };
    let config = Config::parse(more, &overrides).unwrap();
    let host = Host::start(config).await.unwrap();
    let address = format!("http://{}", host.sessions_address());
    let (stop, stopping) = oneshot::channel();
    let stopped = tokio::spawn(host.run_until(async {
        let _ = stopping.await;
    }));
    Running { address, stop, stopped }
}

impl Running {
    pub(crate) async fn stop(self) -> Stopped {
        self.stop.send(()).unwrap();
        within(self.stopped).await.unwrap()
    }
}

pub(crate) async fn connect(running: &Running) -> Channel {
    Endpoint::from_shared(running.address.clone()).unwrap().connect().await.unwrap()
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("the host did not answer in time")
}

/// One stream, with what it sends and what it was told.
pub(crate) struct Stream {
    pub(crate) send: mpsc::UnboundedSender<ClientMessage>,
    pub(crate) receive: Streaming<turnstile_protocol::v1::ServerMessage>,
    pub(crate) queue: std::collections::VecDeque<Item>,
}

impl Stream {
    pub(crate) async fn open(running: &Running) -> Self {
        Self::open_on(connect(running).await).await
    }

    pub(crate) async fn open_on(channel: Channel) -> Self {
        let mut client = LockServiceClient::new(channel);
        let (send, receiver) = mpsc::unbounded_channel();
        let receive = client.session(UnboundedReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { send, receive, queue: std::collections::VecDeque::new() }
    }

    pub(crate) fn say(&self, item: impl Into<ClientItem>) {
        self.send.send(ClientMessage { items: vec![item.into()] }).unwrap();
    }

    pub(crate) async fn hear(&mut self) -> Result<Item, Status> {
        loop {
            if let Some(item) = self.queue.pop_front() {
                return Ok(item);
            }
            match within(self.receive.message()).await? {
                Some(message) => self.queue.extend(message.items.into_iter().filter_map(|item| item.item)),
                None => return Err(Status::ok("the stream ended")),
            }
        }
    }

    pub(crate) async fn refused(mut self) -> Code {
        loop {
            if let Err(status) = self.hear().await {
                return status.code();
            }
        }
    }

    pub(crate) async fn welcome(&mut self) -> Welcome {
        match self.hear().await.unwrap() {
            Item::Welcome(welcome) => welcome,
            other => panic!("expected a Welcome, got {other:?}"),
        }
    }

    pub(crate) async fn grant(&mut self) -> Grant {
        match self.hear().await.unwrap() {
            Item::Grant(grant) => grant,
            other => panic!("expected a Grant, got {other:?}"),
        }
    }

    /// Waits for a Grant for as long as that takes, and keeps the session alive.
    pub(crate) async fn grant_while_beating(&mut self, seq: &mut u64) -> Grant {
        let mut beat = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                _ = beat.tick() => {
                    *seq += 1;
                    self.say(Heartbeat { seq: *seq });
                }
                item = self.hear() => match item.unwrap() {
                    Item::Grant(grant) => return grant,
                    Item::HeartbeatAck(_) => {}
                    other => panic!("expected a Grant, got {other:?}"),
                },
            }
        }
    }

    pub(crate) async fn rejection(&mut self) -> (u64, RejectReason) {
        match self.hear().await.unwrap() {
            Item::Reject(reject) => (reject.id, reject.reason()),
            other => panic!("expected a Reject, got {other:?}"),
        }
    }
}

pub(crate) fn hello() -> Hello {
    Hello { protocol_version: VERSION, node: "test".into(), generation: 1, heartbeat_seq: 1, ..Hello::default() }
}

pub(crate) fn resume(welcome: &Welcome, generation: u64, seq: u64, resume: Resume) -> Hello {
    let incarnation = welcome.incarnation.clone();
    let resume = Resume { incarnation, session_id: welcome.session_id, ..resume };
    Hello { generation, heartbeat_seq: seq, resume: Some(resume), ..hello() }
}

pub(crate) fn acquire(id: u64, key: &str, wait_ms: u32) -> Acquire {
    let keys = vec![KeyRequest { key: key.into(), mode: Mode::Exclusive.into(), limit: 0 }];
    Acquire { id, keys, wait_ms, lock_delay_ms: 100, ..Acquire::default() }
}

pub(crate) fn release(id: u64, ending: Ending) -> Release {
    Release { id, ending: ending.into() }
}

pub(crate) async fn session(running: &Running) -> (Stream, Welcome) {
    let mut stream = Stream::open(running).await;
    stream.say(hello());
    let welcome = stream.welcome().await;
    (stream, welcome)
}
