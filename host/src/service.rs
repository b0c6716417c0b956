//! A running host: ports, store and driver put together, and taken apart again.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use turnstile_core::Engine;
use turnstile_protocol::v1::lock_service_server::LockServiceServer;
use turnstile_protocol::{KEY_MAX_BYTES, KEYS_PER_ACQUIRE_MAX, MESSAGE_MAX_BYTES, VERSION, v1};

use crate::config::{self, Config, Store as StoreConfig};
use crate::driver::{Backlog, Driver, Ended, Event, Health};
use crate::sessions::Sessions;
use crate::store::etcd::{self, EtcdStore};
use crate::store::sqlite::{self, SqliteStore};
use crate::store::{self, Store};
use crate::{admin, api, clock, port, wire};

/// Messages of all streams that may wait for the driver; past them the streams are not read.
const EVENTS_MAX: usize = 1_024;

/// Received bytes that a proxy may have under way: its small messages must never run into HTTP/2's own flood guards
/// while the host is slow for a moment.
const WINDOW_BYTES: u32 = 64 << 20;

/// Streams of one connection at once. A proxy's worker needs one, and for a moment a second one when it resumes.
const STREAMS_PER_CONNECTION_MAX: u32 = 64;

/// How often peers are sent an HTTP/2 ping.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// A peer that does not answer a ping for this long is gone, or frozen: its session is suspended, so that no lock is
/// granted to somebody who cannot use it. (A peer that was only busy resumes.)
const PING_PATIENCE: Duration = Duration::from_secs(2);

/// What open connections get at the end, to close by themselves.
const CLOSING_GRACE: Duration = Duration::from_secs(1);

/// A host that serves.
#[derive(Debug)]
pub struct Host {
    sessions_address: SocketAddr,
    admin_address: SocketAddr,
    api_address: Option<SocketAddr>,
    events: mpsc::Sender<Event>,
    driver: JoinHandle<Ended>,
    ports: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
    drain_grace: Duration,
}

/// Why a host could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port could not be bound.
    #[error("cannot listen on {address} ({what}): {error}")]
    Bind {
        /// Which one.
        address: SocketAddr,
        /// What it is for.
        what: &'static str,
        /// The system's word.
        error: io::Error,
    },
    /// The store could not be opened.
    #[error("cannot open the store: {0}")]
    Sqlite(#[from] sqlite::OpenError),
    /// The same, on etcd.
    #[error("cannot open the store: {0}")]
    Etcd(#[from] etcd::OpenError),
    /// Forced releases could not be recorded.
    #[error("cannot write {} (api.audit_file): {error}", path.display())]
    Audit {
        /// The file.
        path: PathBuf,
        /// The system's word.
        error: io::Error,
    },
    /// The system's random source failed.
    #[error("no randomness for the incarnation's name: {0}")]
    Randomness(getrandom::Error),
}

/// How a host ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Nothing was held any more, everything was given up.
    Drained,
    /// Holds (or quarantines) were left when the grace was over; the lease runs out by itself, so that they are kept.
    GraceOver,
    /// The host could not trust itself any more.
    Fault(String),
}

impl Host {
    /// Binds the ports, opens the store and serves.
    ///
    /// # Errors
    /// Whatever is in the way; nothing is left running.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let sessions = bind(config.sessions.listen, "sessions").await?;
        let admin = bind(config.admin_listen, "admin").await?;
        let api = match &config.api {
            Some(config) => Some((bind(config.listen, "api").await?, config)),
            None => None,
        };
        let sessions_address = local_address(&sessions, config.sessions.listen);
        let admin_address = local_address(&admin, config.admin_listen);
        let api_address = api.as_ref().map(|(listener, config)| local_address(listener, config.listen));

        let (store_events, store_receiver) = mpsc::unbounded_channel();
        let store = open_store(&config.store, store_events)?;
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let backlog = Backlog::default();
        let api = match api {
            Some((listener, api)) => Some((listener, ready_api(api, &config, &events, &backlog)?)),
            None => None,
        };
        let health = Arc::new(Health::new(clock::now()));
        let welcome = welcome(&config)?;
        let incarnation = welcome.incarnation.clone();
        let engine = Engine::new(config.engine.clone());
        let driver = Driver::new(engine, store, store_receiver, receiver, welcome, Arc::clone(&health));
        let driver = tokio::spawn(driver.run());

        let sessions = serve_sessions(sessions, config.connections_max, Sessions::new(events.clone(), backlog));
        let mut ports = vec![sessions, admin::serve(admin, health)];
        ports.extend(api.map(|(listener, api)| api.serve(listener)));
        let api_shown = api_address.map(tracing::field::display);
        tracing::info!(%sessions_address, %admin_address, api_address = api_shown, incarnation, "listening");
        let drain_grace = config.drain_grace;
        Ok(Self { sessions_address, admin_address, api_address, events, driver, ports, drain_grace })
    }

    /// Where proxies connect.
    pub fn sessions_address(&self) -> SocketAddr {
        self.sessions_address
    }

    /// Where the probes are.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Where the API is, if it is on.
    pub fn api_address(&self) -> Option<SocketAddr> {
        self.api_address
    }

    /// Serves until `stop` comes, then drains; or until a fault.
    pub async fn run_until(mut self, stop: impl Future<Output = ()>) -> Stopped {
        let stopped = tokio::select! {
            ended = &mut self.driver => stopped(ended),
            () = stop => self.drain().await,
        };
        for (end, _) in &mut self.ports {
            let (unused, _) = oneshot::channel();
            let _ = std::mem::replace(end, unused).send(());
        }
        for (_, mut port) in self.ports {
            if tokio::time::timeout(CLOSING_GRACE, &mut port).await.is_err() {
                port.abort();
            }
        }
        stopped
    }

    async fn drain(&mut self) -> Stopped {
        tracing::info!(grace_s = self.drain_grace.as_secs(), "draining: no new grants, waiting for holds to end");
        let ended = async {
            // A driver that is gone already has said why.
            let _ = self.events.send(Event::Drain).await;
            (&mut self.driver).await
        };
        match tokio::time::timeout(self.drain_grace, ended).await {
            Ok(ended) => stopped(ended),
            Err(_) => {
                self.driver.abort();
                Stopped::GraceOver
            }
        }
    }
}

fn stopped(ended: Result<Ended, tokio::task::JoinError>) -> Stopped {
    match ended {
        Ok(Ended::Drained) => Stopped::Drained,
        Ok(Ended::Fault(fault)) => Stopped::Fault(fault),
        Ok(Ended::Abandoned) => Stopped::Fault("the driver was abandoned".into()),
        Err(error) => Stopped::Fault(error.to_string()),
    }
}

async fn bind(address: SocketAddr, what: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| StartError::Bind { address, what, error })
}

fn local_address(listener: &TcpListener, asked_for: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked_for)
}

fn open_store(config: &StoreConfig, events: mpsc::UnboundedSender<store::Event>) -> Result<Box<dyn Store>, StartError> {
    match config {
        StoreConfig::Sqlite(config) => Ok(Box::new(SqliteStore::open(config.clone(), events)?)),
        StoreConfig::Etcd(config) => Ok(Box::new(EtcdStore::open(config.clone(), events)?)),
    }
}

fn ready_api(
    api: &config::Api,
    config: &Config,
    events: &mpsc::Sender<Event>,
    backlog: &Backlog,
) -> Result<api::Ready, StartError> {
    api::Ready::new(api, &config.engine, events.clone(), backlog.clone())
        .map_err(|error| StartError::Audit { path: api.audit_file.clone().unwrap_or_default(), error })
}

fn welcome(config: &Config) -> Result<v1::Welcome, StartError> {
    let mut incarnation = [0; 8];
    getrandom::fill(&mut incarnation).map_err(StartError::Randomness)?;
    Ok(v1::Welcome {
        protocol_version: VERSION,
        incarnation: format!("{:016x}", u64::from_ne_bytes(incarnation)),
        session_id: 0,
        resumed: false,
        ttl_ms: wire::to_millis(config.engine.session_ttl),
        heartbeat_ms: wire::to_millis(config.sessions.heartbeat),
        limits: Some(v1::Limits {
            key_max_bytes: u32::try_from(KEY_MAX_BYTES).unwrap_or(u32::MAX),
            keys_per_acquire_max: u32::try_from(KEYS_PER_ACQUIRE_MAX).unwrap_or(u32::MAX),
            waiters_per_session_max: u32::try_from(config.engine.waiters_per_session_max).unwrap_or(u32::MAX),
            message_max_bytes: u32::try_from(MESSAGE_MAX_BYTES).unwrap_or(u32::MAX),
        }),
    })
}

fn serve_sessions(
    listener: TcpListener,
    connections_max: usize,
    service: LockServiceServer<Sessions>,
) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let (end, ended) = oneshot::channel();
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(Some(STREAMS_PER_CONNECTION_MAX))
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_PATIENCE))
        .add_service(service)
        .serve_with_incoming_shutdown(port::incoming(listener, connections_max), async move {
            let _ = ended.await;
        });
    let task = tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the port for proxies failed");
        }
    });
    (end, task)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_driver_that_takes_nothing_any_more_does_not_outlast_the_grace() {
        let (events, _never_read) = mpsc::channel(1);
        events.send(Event::Drain).await.unwrap();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let host = Host {
            sessions_address: nowhere,
            admin_address: nowhere,
            api_address: None,
            events,
            driver: tokio::spawn(std::future::pending()),
            ports: Vec::new(),
            drain_grace: Duration::from_millis(1),
        };
        assert_eq!(host.run_until(async {}).await, Stopped::GraceOver);
    }
}
