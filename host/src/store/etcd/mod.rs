//! The etcd store: ownership of keys in a cluster that survives machines.
//!
//! One task on a thread of its own owns all state. Liveness is one leased key per host, written anew with every beat;
//! ownership is one record per lock key, created by a transaction on create revision 0 and guarded by its revision ever
//! after, which is its epoch. Queues are leased keys ordered by create revision; the owner hands the record to the
//! first of them in the transaction that gives it up. One watch per host tells of deaths, and one wakes it.
//!
//! Who dies is waited out on the clock of whoever takes over: see `hosts.rs`. A process that writes under our prefix with
//! its own hands can break all of it.
//!
//! Sources: <https://etcd.io/docs/v3.5/learning/api/>, <https://etcd.io/docs/v3.5/learning/api_guarantees/>.

mod answers;
mod decide;
mod hosts;
mod jobs;
mod layout;
mod lease;
mod line;
mod link;
mod reaper;
mod sweep;
mod table;
mod txn;
mod worker;

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use turnstile_core::Token;

use super::{Event, Operation, Store};
use worker::Worker;

/// Where the cluster is, who we are to it, and how long a host's lease lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// URLs of the members, in the order in which they are tried: all `http://`, or all `https://`.
    pub endpoints: Vec<String>,
    /// Everything of ours in the cluster begins with this.
    pub prefix: String,
    /// A host that is silent for this long is taken for dead. Whole seconds, since etcd counts in them; at least
    /// [`EtcdStore::LEASE_TTL_MIN`], and at least what the cluster allows (1.5 times its election timeout).
    pub lease_ttl: Duration,
    /// How long one request may take, connecting included.
    pub request_timeout: Duration,
    /// User name, and the file that has the password in its first line.
    pub user: Option<(String, PathBuf)>,
    /// For `https://` endpoints.
    pub tls: Option<Tls>,
    /// Epochs start above this: lifts them over anything handed out by a store that was lost or restored.
    pub epoch_base: u64,
}

/// PEM files. They are read at every connection, so that renewed ones are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Whom to believe.
    pub ca_file: PathBuf,
    /// Our certificate and its key, for mutual TLS.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Why the store could not be opened, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum OpenError {
    #[error("epoch_base {given} is out of range: at most {max}", max = Token::EPOCH_MAX.0)]
    EpochBase { given: u64 },
    #[error("lease_ttl {given:?} is out of range: whole seconds, from {min:?} to five minutes", min = EtcdStore::LEASE_TTL_MIN)]
    LeaseTtl { given: Duration },
    #[error("request_timeout {given:?} is out of range: at most half of lease_ttl")]
    RequestTimeout { given: Duration },
    #[error("no endpoints: name at least one member of the cluster")]
    NoEndpoints,
    #[error("cannot read {path}: {error}")]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("cannot start the store's thread: {0}")]
    NoThread(std::io::Error),
}

/// An open etcd store. Dropping it is an abrupt death: the lease is not ended, it runs out.
pub struct EtcdStore {
    submitted: UnboundedSender<Operation>,
    thread: Option<JoinHandle<()>>,
}

impl EtcdStore {
    /// The shortest lease.
    pub const LEASE_TTL_MIN: Duration = Duration::from_secs(1);
    const LEASE_TTL_MAX: Duration = Duration::from_secs(300);

    /// Checks the configuration and starts to keep a lease in the cluster; that goes on in the background, and until
    /// the cluster answers there is no lease. Does not block on the network.
    ///
    /// # Errors
    /// See [`OpenError`]; each says what to do.
    pub fn open(config: Config, events: UnboundedSender<Event>) -> Result<Self, OpenError> {
        if config.epoch_base > Token::EPOCH_MAX.0 {
            return Err(OpenError::EpochBase { given: config.epoch_base });
        }
        let range = Self::LEASE_TTL_MIN..=Self::LEASE_TTL_MAX;
        if !range.contains(&config.lease_ttl) || config.lease_ttl.subsec_nanos() != 0 {
            return Err(OpenError::LeaseTtl { given: config.lease_ttl });
        }
        if config.request_timeout > config.lease_ttl / 2 {
            return Err(OpenError::RequestTimeout { given: config.request_timeout });
        }
        if config.endpoints.is_empty() {
            return Err(OpenError::NoEndpoints);
        }
        for path in config.files() {
            std::fs::read(path).map_err(|error| OpenError::Unreadable { path: path.clone(), error })?;
        }
        let (submitted, inbox) = unbounded_channel();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(OpenError::NoThread)?;
        let thread = std::thread::Builder::new()
            .name("store-etcd".to_owned())
            .spawn(move || {
                let (worker, messages) = Worker::new(config, events);
                runtime.block_on(worker.run(inbox, messages));
                // What is under way is let go of: a death leaves no time for it.
                runtime.shutdown_background();
            })
            .map_err(OpenError::NoThread)?;
        Ok(Self { submitted, thread: Some(thread) })
    }
}

impl Config {
    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let tls = self.tls.iter().flat_map(|tls| {
            let identity = tls.identity.iter().flat_map(|(cert, key)| [cert, key]);
            std::iter::once(&tls.ca_file).chain(identity)
        });
        self.user.iter().map(|(_, password)| password).chain(tls)
    }
}

impl Store for EtcdStore {
    fn submit(&self, operation: Operation) {
        // Fails only if the thread is gone, and then its events channel is closed too, which the driver sees.
        let _ = self.submitted.send(operation);
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        // The task ends when nobody can submit any more.
        let (closed, _) = unbounded_channel();
        self.submitted = closed;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
