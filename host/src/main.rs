//! The program `turnstile`: its commands, their flags, and how they end.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use turnstile_host::config::{Config, Overrides};
use turnstile_host::guard::{self, Upstream};
use turnstile_host::operator::{ApiUrl, Release};
use turnstile_host::plugin_file;
use turnstile_host::service::{Host, Stopped};

/// A mutex in front of HTTP endpoints, at the proxy, with no change to the application.
#[derive(Parser)]
#[command(name = "turnstile", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: CliCommand,
}

const EXIT_CODES: &str = "Exit codes: 0 ended as asked, 1 failed, 64 bad configuration or flags.\n\
    Logs go to standard error; RUST_LOG sets what is logged (default: info).";

#[derive(Subcommand)]
enum CliCommand {
    Host(HostArgs),
    Guard(GuardArgs),
    Plugin(PluginArgs),
    Locks(LocksArgs),
    Release(ReleaseArgs),
}

/// Run the lock service that Envoys with the filter connect to.
#[derive(Args)]
#[command(after_help = HOST_HELP)]
struct HostArgs {
    /// Configuration file (TOML); without it everything is at its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Port for proxies (sessions.listen) [default: 127.0.0.1:7878].
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Port for the probes /live and /ready (admin.listen) [default: 127.0.0.1:7879].
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin_listen: Option<SocketAddr>,
    /// Port for people and scripts (api.listen) [default: 127.0.0.1:7880].
    #[arg(long, value_name = "ADDRESS:PORT")]
    api_listen: Option<SocketAddr>,
    /// SQLite database (store.path), made if absent [default: turnstile.db].
    #[arg(long, value_name = "FILE")]
    database: Option<PathBuf>,
}

const HOST_HELP: &str = "\
A configuration file with every field at its default:

  [sessions]                       # the port for proxies
  listen = \"127.0.0.1:7878\"
  insecure = false                 # true allows addresses beyond loopback: whoever reaches the port takes locks
  ttl = \"4s\"                       # a proxy unheard of for this long loses its locks
  heartbeat = \"1s\"                 # default: a quarter of ttl
  [admin]
  listen = \"127.0.0.1:7879\"        # GET /live, GET /ready
  [api]                            # locks without gRPC, what is locked now, releases by force; see README
  enabled = true
  listen = \"127.0.0.1:7880\"
  insecure = false                 # true allows addresses beyond loopback, and any Host header
  connections = 1024               # more are closed at once; half of them may wait for locks
  audit_file = \"\"                  # if named: forced releases are appended to it before they are carried out
  [store]
  kind = \"sqlite\"
  path = \"turnstile.db\"
  lease_ttl = \"5s\"                 # a host unheard of for this long is dead: its keys may be taken over
  epoch_base = 0                   # fencing tokens start above this epoch; raise it after restoring a backup
  [limits]                         # past these, requests are rejected at once
  connections = 4096               # more are closed at once
  sessions = 10000
  waiters = 1000000                # of all sessions and keys
  waiters_per_session = 10000
  waiters_per_key = 10000
  holds_per_session = 32768
  joins_per_hold = 256             # requests that have joined one hold, or wait to (reentrant rules)
  keys = 1000000
  wait = \"10m\"
  hold = \"1h\"
  lock_delay = \"1h\"
  [ownership]                      # of keys, in the store, among several hosts
  idle = \"1m\"                      # an unused key is given up after this long
  handoff_grants = 64              # when another host wants a key: so many more local grants,
  handoff_time = \"100ms\"           # and for so long, then it is passed on
  claim_patience = \"1s\"            # a request waits for the store for this long at least, even with wait=0
  [drain]
  grace = \"30s\"                    # on SIGTERM: how long holds may still last

Ownership in an etcd cluster, shared by hosts on several machines, instead of a file:

  [store]
  kind = \"etcd\"
  endpoints = [\"https://10.0.0.1:2379\", \"https://10.0.0.2:2379\", \"https://10.0.0.3:2379\"]
  prefix = \"turnstile/\"            # hosts with the same prefix share their keys
  lease_ttl = \"5s\"                 # whole seconds, at least 1.5 election timeouts of etcd
  request_timeout = \"1s\"           # then the next endpoint is tried
  user = \"turnstile\"               # optional, together with:
  password_file = \"/etc/turnstile/password\"
  ca_file = \"/etc/turnstile/ca.pem\"      # for https: whose certificates to believe
  cert_file = \"/etc/turnstile/host.pem\"  # optional, for mutual TLS, together with:
  key_file = \"/etc/turnstile/host.key\"
  epoch_base = 0                   # the same on all hosts; raise it after restoring a backup

SIGTERM or Ctrl-C drains: no new grants, holds run out, everything is given up. A second one ends at once; what was
held then stays locked until the lease and the lock delays are over.";

/// Put a lock in front of an HTTP service: runs the host and an Envoy with the filter, no configuration file needed.
#[derive(Args)]
#[command(after_help = GUARD_HELP)]
struct GuardArgs {
    /// Where clients connect.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10000")]
    listen: SocketAddr,
    /// The service to guard: http://HOST:PORT.
    #[arg(long, value_name = "URL")]
    upstream: Upstream,
    /// A rule; may be given several times.
    #[arg(long = "rule", value_name = "RULE", required_unless_present = "rules")]
    rule: Vec<String>,
    /// A file of rules: one a line (# comments), or a JSON array.
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// The Envoy program [default: on PATH, then where `cargo xtask setup` fetched it to].
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// Envoy's worker threads [default: one a core].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1024))]
    concurrency: Option<u32>,
    /// SQLite database that remembers locks over restarts, made if absent.
    #[arg(long, value_name = "FILE", default_value = "turnstile.db")]
    database: PathBuf,
    /// Port for the probes /live and /ready; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    admin_listen: SocketAddr,
    /// Port for people and scripts (turnstile locks, turnstile release) [default: none].
    #[arg(long, value_name = "ADDRESS:PORT")]
    api_listen: Option<SocketAddr>,
    /// How long requests under way may still last after SIGTERM or Ctrl-C.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    grace: Duration,
}

const GUARD_HELP: &str = "\
Example:

  turnstile guard --listen 127.0.0.1:10000 --upstream http://127.0.0.1:8080 \\
      --rule 'POST /accounts/{id}/transfer key=account:{id} wait=5s'

A rule is  METHOD[,METHOD] [HOST]/PATH key=KEY[,KEY] [mode=exclusive|shared|limit:N] [wait=10s] [queue=N]
[fail_fast=on|off] [hold=60s] [lock_delay=15s] [reentrant=on|off] [on_lost=abort|continue]
[on_host_unavailable=deny|allow] [name=NAME].  METHOD may be *; {name} in the path matches one segment, {*name} the
rest.  KEY may use {name}, {query.NAME} and {header.NAME}.  Requests with equal keys pass one at a time:
  mode        shared: together with other shared ones; limit:N: up to N together
  wait        how long a request waits for its turn (0: not at all, it is answered 423); then it is answered 503
  queue       answered 503 at once when so many wait already
  fail_fast   answered 503 at once when the turn is not to be expected within the wait
  hold        the longest time it may take, then it is aborted
  lock_delay  how long the keys stay locked when the service may still be at work (timeout, client gone, ...)
  reentrant   calls that bring the x-turnstile-holder header of the request they belong to share its lock
Requests that match no rule pass untouched.";

/// Write the filter's wasm file, for Envoys of your own.
#[derive(Args)]
struct PluginArgs {
    /// Where to; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// Show what is locked now at a host, who holds it and who waits.
#[derive(Args)]
#[command(after_help = LOCKS_HELP)]
struct LocksArgs {
    /// The host's API.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7880")]
    api: ApiUrl,
    /// Also keys that nobody holds or waits for, but that the host owns in its store.
    #[arg(long)]
    all: bool,
    /// Only keys whose names begin so, such as default/account:
    #[arg(default_value = "")]
    prefix: String,
}

const LOCKS_HELP: &str = "\
Each host knows its own holders and waiters: ask all of them if several share a store.

A key says how this host stands to it (owned; claiming or queued: asked for in the store; contended: another host wants
it), how many hold it and wait for it, and whether it is in quarantine because earlier work may not be over. Of holders
and waiters the first ones are shown. `curl http://127.0.0.1:7880/v1/locks/default/account:42` shows more of one key.";

/// End holds of a key by force, with a record of who did so and why.
#[derive(Args)]
#[command(after_help = RELEASE_HELP)]
struct ReleaseArgs {
    /// The host's API.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7880")]
    api: ApiUrl,
    /// The lock key, with its namespace: default/account:42.
    #[arg(long, value_name = "KEY")]
    key: String,
    /// Only the hold with this fencing token; without it, all holds of the key.
    #[arg(long, value_name = "TOKEN")]
    token: Option<u64>,
    /// Who orders this, for the record.
    #[arg(long, value_name = "NAME")]
    by: String,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// No lock delay: nothing works under this lock any more. Without --token, also lifts the key's quarantine.
    #[arg(long)]
    skip_lock_delay: bool,
}

const RELEASE_HELP: &str = "\
Holders are told at once: a proxy aborts the request (unless its rule says on_lost=continue) and lets go. A holder that
does not answer keeps the lock until it cannot believe in it any more (sessions.ttl). Then the key is kept for the lock
delay, since the service behind it may still be at work; --skip-lock-delay is for those who know that it is not.

The record is in the host's log (target turnstile::audit), at /v1/audit of the API, and in the host's api.audit_file.

Example:

  turnstile locks default/account:42
  turnstile release --key default/account:42 --by ann --reason 'OPS-512: transfer hangs since 9:40'";

/// How a command fails.
enum Failure {
    /// The user must change something.
    Usage(String),
    /// Something outside failed.
    Other(String),
}

// One thread: what arrives together is then handled together and answered in one write, which costs the proxies less
// than a second core gains here. The store has a thread of its own.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; everything else is the user's to mend.
            let code = if error.use_stderr() { 64 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
    let result = match cli.command {
        CliCommand::Host(args) => run_host(args).await,
        CliCommand::Guard(args) => run_guard(args).await,
        CliCommand::Plugin(args) => write_plugin(&args.output),
        CliCommand::Locks(args) => show_locks(&args).await,
        CliCommand::Release(args) => force_release(args).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(problem)) => {
            eprintln!("{problem}");
            ExitCode::from(64)
        }
        Err(Failure::Other(problem)) => {
            eprintln!("turnstile: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn run_host(args: HostArgs) -> Result<(), Failure> {
    let (text, origin) = match &args.config {
        Some(path) => (read(path)?, path.display().to_string()),
        None => (String::new(), "flags".into()),
    };
    let overrides = Overrides {
        listen: args.listen,
        admin_listen: args.admin_listen,
        api_listen: args.api_listen,
        database: args.database,
    };
    let config = Config::parse(&text, &overrides)
        .map_err(|faults| Failure::Usage(format!("turnstile: bad configuration ({origin}):\n{faults}")))?;
    let stop = stop_signal()?;
    let host = Host::start(config).await.map_err(other)?;
    match host.run_until(stop).await {
        Stopped::Drained => {
            tracing::info!("ended: nothing was held, everything was given up");
            Ok(())
        }
        Stopped::GraceOver => Err(Failure::Other(
            "locks were still held when the grace was over; they stay locked until the lease and their lock delays \
             are over"
                .into(),
        )),
        Stopped::Fault(fault) => Err(Failure::Other(format!("the host stopped itself: {fault}"))),
    }
}

async fn run_guard(args: GuardArgs) -> Result<(), Failure> {
    let filter_config = filter_config(&args)?;
    let options = guard::Options {
        listen: args.listen,
        upstream: args.upstream,
        filter_config,
        database: args.database,
        envoy: args.envoy,
        concurrency: args.concurrency,
        admin_listen: args.admin_listen,
        api_listen: args.api_listen,
        grace: args.grace,
    };
    let stop = stop_signal()?;
    let ready = |options: &guard::Options| {
        let guard::Options { listen, upstream, .. } = options;
        println!("ready: http://{listen} -> http://{}:{} (Ctrl-C ends it)", upstream.host, upstream.port);
    };
    guard::run(options, ready, stop).await.map_err(other)
}

/// The filter's configuration from `--rule` and `--rules`, or every fault in them.
fn filter_config(args: &GuardArgs) -> Result<String, Failure> {
    let mut rules: Vec<serde_json::Value> = args.rule.iter().map(|line| line.as_str().into()).collect();
    if let Some(path) = &args.rules {
        let from_file = turnstile_rules::parse_rules_file(&read(path)?)
            .map_err(|faults| Failure::Usage(format!("turnstile: bad rules in {}:\n{faults}", path.display())))?;
        rules.extend(from_file);
    }
    turnstile_rules::filter_config_json(guard::HOST_CLUSTER, "default", &rules)
        .map_err(|faults| Failure::Usage(format!("turnstile: bad rules:\n{faults}")))
}

fn write_plugin(output: &Path) -> Result<(), Failure> {
    let bytes = plugin_file::bytes().map_err(other)?;
    if output == Path::new("-") {
        return std::io::stdout().write_all(&bytes).map_err(other);
    }
    std::fs::write(output, &bytes)
        .map_err(|error| Failure::Other(format!("cannot write {}: {error}", output.display())))?;
    eprintln!("wrote {} ({} bytes)", output.display(), bytes.len());
    Ok(())
}

async fn show_locks(args: &LocksArgs) -> Result<(), Failure> {
    let show = |page: &str| std::io::stdout().write_all(page.as_bytes());
    args.api.locks(&args.prefix, args.all, show).await.map_err(other)
}

async fn force_release(args: ReleaseArgs) -> Result<(), Failure> {
    let ReleaseArgs { api, key, token, by, reason, skip_lock_delay } = args;
    let release = Release { key, token, by, reason, skip_lock_delay };
    let told = api.release(&release).await.map_err(other)?;
    std::io::stdout().write_all(told.as_bytes()).map_err(other)
}

/// Resolves at the first SIGTERM or Ctrl-C; a second one ends the process at once.
fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(other)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(other)?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut stop = Some(stop);
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            match stop.take() {
                Some(stop) => {
                    let _ = stop.send(());
                }
                None => std::process::exit(1),
            }
        }
    });
    Ok(async move {
        let _ = stopped.await;
    })
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::Usage(format!("turnstile: cannot read {}: {error}", path.display())))
}

fn other(error: impl std::fmt::Display) -> Failure {
    Failure::Other(error.to_string())
}
