//! A real `turnstile host` on a store in a temporary directory: started, frozen, killed, and started again on it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::artifacts;
use crate::http::Ask;
use crate::ports::free_port;
use crate::process::Process;
use crate::wait::{PATIENCE, until};

/// What tests change in the host's configuration. Times are short, so that the death of things is over soon.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Session TTL, in milliseconds.
    pub ttl_ms: u32,
    /// Heartbeat interval, in milliseconds.
    pub heartbeat_ms: u32,
    /// TTL of the lease in the store, in milliseconds.
    pub lease_ms: u32,
    /// Where ownership is recorded.
    pub store: StoreConfig,
    /// Further lines of TOML: `[limits]` and the like.
    pub more: String,
    /// The one core that the process may use.
    pub core: Option<usize>,
}

/// Where ownership is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreConfig {
    /// In a SQLite file that the harness places.
    Sqlite,
    /// In the etcd cluster with these endpoints.
    Etcd(Vec<String>),
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            ttl_ms: 2_000,
            heartbeat_ms: 500,
            lease_ms: 3_000,
            store: StoreConfig::Sqlite,
            more: String::new(),
            core: None,
        }
    }
}

/// A host, and the place of its store, which outlives the process.
pub struct Host {
    /// The process.
    pub process: Process,
    /// Where sessions are served.
    pub sessions: SocketAddr,
    /// Live and ready probes.
    pub admin: SocketAddr,
    /// Its API.
    pub api: SocketAddr,
    database: PathBuf,
    core: Option<usize>,
    dir: TempDir,
}

impl Host {
    /// Starts a host on a new database, and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready; its log is shown.
    pub async fn start(config: &HostConfig) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let database = dir.path().join("turnstile.db");
        Self::start_on(config, dir, database).await
    }

    /// Starts another host on the database of `other`.
    ///
    /// # Panics
    /// If it does not become ready; its log is shown.
    pub async fn start_beside(other: &Self, config: &HostConfig) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        Self::start_on(config, dir, other.database.clone()).await
    }

    async fn start_on(config: &HostConfig, dir: TempDir, database: PathBuf) -> Self {
        let sessions = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let api = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let store = match &config.store {
            StoreConfig::Sqlite => format!("kind = \"sqlite\"\npath = \"{}\"", database.display()),
            StoreConfig::Etcd(endpoints) => format!("kind = \"etcd\"\nendpoints = {endpoints:?}"),
        };
        let toml = format!(
            "[sessions]\nlisten = \"{sessions}\"\nttl = \"{}ms\"\nheartbeat = \"{}ms\"\n\
             [admin]\nlisten = \"{admin}\"\n\
             [api]\nlisten = \"{api}\"\n\
             [store]\n{store}\nlease_ttl = \"{}ms\"\n\
             {}\n",
            config.ttl_ms, config.heartbeat_ms, config.lease_ms, config.more,
        );
        fs::write(dir.path().join("turnstile.toml"), toml).expect("the configuration can be written");
        let core = config.core;
        let host = Self { process: launch(&dir, core), sessions, admin, api, database, core, dir };
        host.ready().await;
        host
    }

    /// Starts the host again, on the same ports and database, after it has ended or was killed; returns at once.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = launch(&self.dir, self.core);
    }

    /// Waits until it says it is ready.
    ///
    /// # Panics
    /// If it never does.
    pub async fn ready(&self) {
        until("the host to be ready", PATIENCE, async || self.probe("/ready").await.then_some(())).await;
    }

    /// Asks one of its probes.
    pub async fn probe(&self, path: &str) -> bool {
        Ask::get(path).send(self.admin).await.is_ok_and(|answer| answer.status == 200)
    }
}

fn launch(dir: &TempDir, core: Option<usize>) -> Process {
    let config = dir.path().join("turnstile.toml");
    let args = ["host", "--config", config.to_str().expect("temporary paths are UTF-8")].map(str::to_owned);
    let (program, log) = (artifacts::turnstile_bin(), dir.path().join("host.log"));
    let Some(core) = core else { return Process::start("the host", &program, &args, &log) };
    // taskset (util-linux) becomes the program.
    let pinned = ["--cpu-list".to_owned(), core.to_string(), program.to_str().expect("a path in UTF-8").to_owned()];
    Process::start("the host", Path::new("taskset"), &[&pinned[..], &args].concat(), &log)
}
