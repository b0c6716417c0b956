//! A real Envoy: started on a bootstrap, asked through its admin port, frozen, drained and killed.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::artifacts;
use crate::bootstrap::Bootstrap;
use crate::http::{Answer, Ask};
use crate::process::Process;
use crate::wait::{PATIENCE, until};

/// A running Envoy that has said it is ready.
pub struct Envoy {
    /// The process.
    pub process: Process,
    /// Where clients connect.
    pub listener: SocketAddr,
    /// Its admin port.
    pub admin: SocketAddr,
    _dir: TempDir,
}

impl Envoy {
    /// Starts Envoy with `workers` worker threads and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready; its log is shown.
    pub async fn start(bootstrap: &Bootstrap, workers: usize) -> Self {
        Self::ready(begin(bootstrap, workers)).await
    }

    /// As [`Envoy::start`], for several at the same time.
    ///
    /// # Panics
    /// If one of them does not become ready; its log is shown.
    pub async fn start_all(bootstraps: &[Bootstrap], workers: usize) -> Vec<Self> {
        let begun: Vec<_> = bootstraps.iter().map(|bootstrap| begin(bootstrap, workers)).collect();
        let mut envoys = Vec::new();
        for one in begun {
            envoys.push(Self::ready(one).await);
        }
        envoys
    }

    async fn ready((process, dir): (Process, TempDir)) -> Self {
        let admin = admin_address(&dir.path().join("admin")).await;
        let ready = async || Ask::get("/ready").send(admin).await.is_ok_and(|answer| answer.status == 200);
        until("Envoy to be ready", PATIENCE, async || ready().await.then_some(())).await;
        let listener = listener_address(admin).await;
        Self { process, listener, admin, _dir: dir }
    }

    /// Starts Envoy on a bootstrap that it ought to refuse, and returns what it wrote when it has ended.
    ///
    /// # Panics
    /// If it goes on running or ends in success.
    pub async fn refuse(bootstrap: &Bootstrap) -> String {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let mut process = launch(dir.path(), bootstrap, 1);
        let status = process.ended(PATIENCE).await;
        assert!(!status.success(), "Envoy took a bootstrap that it ought to refuse");
        process.output()
    }

    /// Asks its admin port by POST.
    pub async fn command(&self, path: &str) -> Answer {
        Ask::new("POST", path).send(self.admin).await.expect("the admin port answers")
    }

    /// A counter or gauge; `None` if Envoy has none of that name.
    pub async fn stat(&self, name: &str) -> Option<u64> {
        let path = format!("/stats?format=json&filter=^{name}$");
        let answer = Ask::get(&path).send(self.admin).await.expect("the admin port answers");
        let stats: Value = serde_json::from_slice(&answer.body).expect("stats are JSON");
        let entry = stats["stats"].as_array()?.iter().find(|entry| entry["name"] == name)?;
        entry["value"].as_u64()
    }

    /// Asks it to end as an orchestrator would.
    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }
}

fn begin(bootstrap: &Bootstrap, workers: usize) -> (Process, TempDir) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    (launch(dir.path(), bootstrap, workers), dir)
}

fn launch(dir: &Path, bootstrap: &Bootstrap, workers: usize) -> Process {
    let config = dir.join("envoy.json");
    fs::write(&config, bootstrap.to_json()).expect("the bootstrap can be written");
    let text = |path: PathBuf| path.to_str().expect("temporary paths are UTF-8").to_owned();
    let args = [
        "-c".to_owned(),
        text(config),
        "--concurrency".to_owned(),
        workers.to_string(),
        "--admin-address-path".to_owned(),
        text(dir.join("admin")),
        // Several Envoys on one machine share nothing.
        "--use-dynamic-base-id".to_owned(),
        "--drain-time-s".to_owned(),
        "5".to_owned(),
        "--log-level".to_owned(),
        std::env::var("TURNSTILE_TEST_ENVOY_LOG").unwrap_or_else(|_| "warning".to_owned()),
    ];
    Process::start("Envoy", &artifacts::envoy(), &args, &dir.join("envoy.log"))
}

async fn admin_address(file: &Path) -> SocketAddr {
    until("Envoy to open its admin port", PATIENCE, async || fs::read_to_string(file).ok()?.trim().parse().ok()).await
}

async fn listener_address(admin: SocketAddr) -> SocketAddr {
    let answer = Ask::get("/listeners?format=json").send(admin).await.expect("the admin port answers");
    let listeners: Value = serde_json::from_slice(&answer.body).expect("listeners are JSON");
    let address = &listeners["listener_statuses"][0]["local_address"]["socket_address"];
    let ip = address["address"].as_str().expect("a listener has an address");
    let port = address["port_value"].as_u64().expect("a listener has a port");
    format!("{ip}:{port}").parse().expect("a listener's address is one")
}
