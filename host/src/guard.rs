//! `turnstile guard`: a host and an Envoy with the filter, put in front of one HTTP service by one command.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::config::{Config, Faults, Overrides};
use crate::plugin_file;
use crate::service::{Host, StartError, Stopped};

mod bootstrap;
mod envoy;
mod upstream;

use bootstrap::Bootstrap;
pub use bootstrap::{Broken, HOST_CLUSTER};
pub use envoy::EnvoyError;
use envoy::{Envoy, Exited};
pub use upstream::{Upstream, UpstreamFault};

/// What to guard, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The service behind the lock.
    pub upstream: Upstream,
    /// The filter's whole configuration, as JSON; valid.
    pub filter_config: String,
    /// The SQLite database.
    pub database: PathBuf,
    /// The Envoy program, if named.
    pub envoy: Option<PathBuf>,
    /// Envoy's worker threads; `None` is one a core.
    pub concurrency: Option<u32>,
    /// Where the host's probes are answered.
    pub admin_listen: SocketAddr,
    /// Where the API listens; `None` is nowhere.
    pub api_listen: Option<SocketAddr>,
    /// How long requests under way get when the guard ends.
    pub grace: Duration,
}

/// Why a guard could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The host's part of the options.
    #[error("{0}")]
    Config(#[from] Faults),
    /// No wasm file.
    #[error("{0}")]
    Plugin(#[from] plugin_file::NoPlugin),
    /// The host.
    #[error("{0}")]
    Host(#[from] StartError),
    /// Envoy.
    #[error("{0}")]
    Envoy(#[from] EnvoyError),
    /// The shipped bootstrap does not have what guard sets in it.
    #[error("the embedded Envoy bootstrap is broken: {0}")]
    Bootstrap(#[from] Broken),
    /// Files for Envoy could not be written.
    #[error("cannot write Envoy's files: {0}")]
    Files(std::io::Error),
    /// The host stopped by itself.
    #[error("the host stopped: {0}")]
    HostFault(String),
}

/// Runs until `stop` comes, or until one of the parts fails. `ready` is called once requests are served.
///
/// # Errors
/// See [`GuardError`].
pub async fn run(
    options: Options,
    ready: impl FnOnce(&Options),
    stop: impl Future<Output = ()>,
) -> Result<(), GuardError> {
    let program = envoy::find(options.envoy.as_deref())?;
    let wasm = plugin_file::bytes()?;
    let overrides = Overrides {
        listen: Some(([127, 0, 0, 1], 0).into()),
        admin_listen: Some(options.admin_listen),
        api_listen: options.api_listen,
        database: Some(options.database.clone()),
    };
    let mut config = Config::parse("", &overrides)?;
    if options.api_listen.is_none() {
        config.api = None;
    }
    config.drain_grace = options.grace;
    let host = Host::start(config).await?;

    // Removed when it is dropped, whichever way the guard ends.
    let directory = TempDir::with_prefix("turnstile-guard-").map_err(GuardError::Files)?;
    let wasm_file = directory.path().join("plugin.wasm");
    std::fs::write(&wasm_file, wasm).map_err(GuardError::Files)?;
    let bootstrap = Bootstrap {
        listen: options.listen,
        upstream: &options.upstream,
        host: host.sessions_address(),
        wasm_file: &wasm_file,
        filter_config: &options.filter_config,
    };
    let bootstrap_file = directory.path().join("envoy.json");
    std::fs::write(&bootstrap_file, bootstrap.to_json()?).map_err(GuardError::Files)?;

    let (end_host, host_ended) = tokio::sync::oneshot::channel::<()>();
    let mut host = tokio::spawn(host.run_until(async {
        let _ = host_ended.await;
    }));
    let mut envoy = Envoy::start(&program, &bootstrap_file, directory.path(), options.concurrency)?;
    let outcome = tokio::select! {
        outcome = serve(&mut envoy, || ready(&options), stop) => outcome,
        stopped = &mut host => {
            envoy.kill().await;
            return Err(GuardError::HostFault(format!("{stopped:?}")));
        }
    };
    // Envoy first: while requests are under way, their locks are needed.
    match &outcome {
        Ok(()) => envoy.drain(options.grace).await,
        Err(_) => envoy.kill().await,
    }
    let _ = end_host.send(());
    match host.await {
        Ok(Stopped::Drained | Stopped::GraceOver) => outcome,
        Ok(Stopped::Fault(fault)) => Err(GuardError::HostFault(fault)),
        Err(error) => Err(GuardError::HostFault(error.to_string())),
    }
}

async fn serve(envoy: &mut Envoy, ready: impl FnOnce(), stop: impl Future<Output = ()>) -> Result<(), GuardError> {
    tokio::pin!(stop);
    tokio::select! {
        started = envoy.ready() => started?,
        () = &mut stop => return Ok(()),
    }
    ready();
    tokio::select! {
        Exited(status) = envoy.exited() => Err(EnvoyError::Exited(status).into()),
        () = &mut stop => Ok(()),
    }
}
