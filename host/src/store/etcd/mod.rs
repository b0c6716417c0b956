//! The etcd store: one leased liveness key per host, one record per lock key, one watch per host.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::{Event, Operation, Store};

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
    #[error("cannot start the store's thread: {0}")]
    NoThread(std::io::Error),
}

/// An open etcd store. Dropping it is an abrupt death: the lease is not ended, it runs out.
pub struct EtcdStore {}

impl EtcdStore {
    /// The shortest lease.
    pub const LEASE_TTL_MIN: Duration = Duration::from_secs(1);

    /// Checks the configuration and starts to keep a lease in the cluster; that goes on in the background, and until
    /// the cluster answers there is no lease. Does not block on the network.
    ///
    /// # Errors
    /// See [`OpenError`]; each says what to do.
    pub fn open(_config: Config, _events: UnboundedSender<Event>) -> Result<Self, OpenError> {
        Err(OpenError::NoThread(std::io::Error::other("not there yet")))
    }
}

impl Store for EtcdStore {
    fn submit(&self, _operation: Operation) {}
}
