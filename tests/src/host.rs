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
    /// Epochs start above this.
    pub epoch_base: u64,
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
            epoch_base: 0,
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
    /// Variables of its environment, which count from the next restart on.
    pub environment: Vec<(&'static str, PathBuf)>,
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
        let core = config.core;
        let toml = to_toml(config, [sessions, admin, api], &database);
        fs::write(dir.path().join(CONFIG_FILE), toml).expect("the configuration can be written");
        let process = launch(&dir, core, &[]);
        let host = Self { process, sessions, admin, api, environment: Vec::new(), database, core, dir };
        host.ready().await;
        host
    }

    /// Gives it another configuration, which counts from the next restart on. Its ports and its database stay.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn reconfigure(&self, config: &HostConfig) {
        let toml = to_toml(config, [self.sessions, self.admin, self.api], &self.database);
        fs::write(self.dir.path().join(CONFIG_FILE), toml).expect("the configuration can be written");
    }

    /// Starts the host again, on the same ports and database, after it has ended or was killed; returns at once.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = launch(&self.dir, self.core, &self.environment);
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

const CONFIG_FILE: &str = "turnstile.toml";

fn to_toml(config: &HostConfig, [sessions, admin, api]: [SocketAddr; 3], database: &Path) -> String {
    let (ttl_ms, heartbeat_ms, lease_ms, more) = (config.ttl_ms, config.heartbeat_ms, config.lease_ms, &config.more);
    let store = match &config.store {
        StoreConfig::Sqlite => format!("kind = \"sqlite\"\npath = \"{}\"", database.display()),
        // Some requests may fail before a lease runs out.
        StoreConfig::Etcd(endpoints) => {
            format!("kind = \"etcd\"\nendpoints = {endpoints:?}\nrequest_timeout = \"{}ms\"", lease_ms / 4)
        }
    };
    format!(
        "[sessions]\nlisten = \"{sessions}\"\nttl = \"{ttl_ms}ms\"\nheartbeat = \"{heartbeat_ms}ms\"\n\
         [admin]\nlisten = \"{admin}\"\n\
         [api]\nlisten = \"{api}\"\n\
         [store]\n{store}\nlease_ttl = \"{lease_ms}ms\"\nepoch_base = {}\n\
         {more}\n",
        config.epoch_base,
    )
}

fn launch(dir: &TempDir, core: Option<usize>, environment: &[(&'static str, PathBuf)]) -> Process {
    let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    let mut command = Vec::new();
    if let Some(core) = core {
        command.extend(["taskset".to_owned(), "--cpu-list".to_owned(), core.to_string()]);
    }
    // taskset (util-linux) and env (coreutils) become what they start.
    if !environment.is_empty() {
        command.push("env".to_owned());
        command.extend(environment.iter().map(|(name, value)| format!("{name}={}", text(value))));
    }
    command.push(text(&artifacts::turnstile_bin()));
    command.extend(["host".to_owned(), "--config".to_owned(), text(&dir.path().join(CONFIG_FILE))]);
    Process::start("the host", Path::new(&command[0]), &command[1..], &dir.path().join("host.log"))
}
