//! The demo itself: starts the bank and the proxies, sends the bursts, and tells what became of them.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::journal;
use super::options::{Options, Past};
use super::processes::Process;
use super::report::{Burst, Report};
use crate::http::Ask;
use crate::load::Load;
use crate::ports::free_port;

/// The rule that guards the bank.
pub const RULE: &str = "POST /accounts/{id}/deposit key=account:{id} wait=30s";

/// Worker threads of both Envoys.
const ENVOY_WORKERS: u32 = 2;

/// The programs that the demo runs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The Envoy binary.
    pub envoy: PathBuf,
    /// The host's binary.
    pub turnstile: PathBuf,
    /// The legacy bank.
    pub bank: PathBuf,
}

/// Everything that runs, in the order in which it is stopped.
pub struct Stage {
    turnstile: Option<Guarded>,
    plain: Proxy,
    bank: Proxy,
    data: PathBuf,
}

struct Proxy {
    process: Process,
    address: SocketAddr,
}

struct Guarded {
    proxy: Proxy,
    /// Also needed by those who look at it by hand.
    admin: SocketAddr,
}

impl Stage {
    /// Starts all of it below `directory`, and waits until it answers.
    pub async fn set_up(options: &Options, programs: &Programs, directory: &Path) -> io::Result<Self> {
        let data = directory.join("bank");
        let bank = start_bank(options, programs, directory, &data).await?;
        told(&format!("legacy bank   http://{}  ({} processes)", bank.address, options.workers));
        let plain = start_plain(programs, directory, bank.address).await?;
        told(&format!("plain Envoy   http://{}", plain.address));
        let turnstile = match options.past {
            Past::Plain => None,
            Past::Both => {
                let guarded = start_turnstile(programs, directory, bank.address).await?;
                told(&format!("Turnstile     http://{}  ({RULE})", guarded.proxy.address));
                Some(guarded)
            }
        };
        Ok(Self { turnstile, plain, bank, data })
    }

    /// Sends the bursts.
    pub async fn play(&self, options: &Options) -> io::Result<Report> {
        let plain = self.burst(options, "plain", self.plain.address).await?;
        let guarded = match &self.turnstile {
            Some(guarded) => Some(self.burst(options, "guarded", guarded.proxy.address).await?),
            None => None,
        };
        Ok(Report { deposits: options.deposits, plain, guarded })
    }

    /// What to try by hand.
    pub fn commands(&self) -> String {
        let front = self.turnstile.as_ref().map_or(self.plain.address, |guarded| guarded.proxy.address);
        let mut text = format!(
            "\
Everything is left running. In another terminal:
  curl -i -X POST http://{front}/accounts/7/deposit -d '{{\"amount\": 5}}'
  seq 500 | xargs -P 32 -I{{}} curl -s -o /dev/null -X POST http://{front}/accounts/mine/deposit; curl http://{front}/accounts/mine
  seq 500 | xargs -P 32 -I{{}} curl -s -o /dev/null -X POST http://{plain}/accounts/lost/deposit; curl http://{plain}/accounts/lost
  curl http://{bank}/stats
",
            plain = self.plain.address,
            bank = self.bank.address,
        );
        if let Some(guarded) = &self.turnstile {
            text += &format!("  curl http://{}/ready\n", guarded.admin);
        }
        text + "Ctrl-C stops it all.\n"
    }

    /// Where the logs are, and how they end.
    pub fn logs(&self) -> String {
        let guarded = self.turnstile.as_ref().map(|guarded| &guarded.proxy.process);
        let processes = guarded.into_iter().chain([&self.plain.process, &self.bank.process]);
        processes.map(|process| format!("{}\n{}", process.log().display(), process.tail())).collect()
    }

    /// Stops everything, the front first.
    pub async fn tear_down(self) {
        if let Some(guarded) = self.turnstile {
            guarded.proxy.process.stop().await;
        }
        self.plain.process.stop().await;
        self.bank.process.stop().await;
    }

    async fn burst(&self, options: &Options, name: &str, to: SocketAddr) -> io::Result<Burst> {
        let accounts: Vec<String> = (1..=options.accounts).map(|number| format!("{name}-{number}")).collect();
        let paths: Vec<String> = accounts.iter().map(|account| format!("/accounts/{account}/deposit")).collect();
        let start = Instant::now();
        let load = Load::start(&[to], options.connections, options.deposits, move |number| {
            Ask::post(&paths[number % paths.len()])
        });
        let seen = load.finish().await;
        let took = start.elapsed();
        told(&format!("burst of {} deposits past {name}: {:.1} s", options.deposits, took.as_secs_f64()));
        let mut money = 0;
        for account in &accounts {
            money += balance(self.bank.address, account).await?;
        }
        let journal = journal::read(&self.data)?;
        let did =
            journal.into_iter().filter(|(account, _)| accounts.contains(account)).map(|(_, account)| account).collect();
        Ok(Burst { seen, took, money, did })
    }
}

async fn start_bank(options: &Options, programs: &Programs, directory: &Path, data: &Path) -> io::Result<Proxy> {
    let arguments = [
        ("--data", data.display().to_string()),
        ("--workers", options.workers.to_string()),
        ("--work-ms", options.work.as_millis().to_string()),
    ];
    let arguments: Vec<String> = arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
    let mut process = Process::start("legacy-bank", directory, &programs.bank, &arguments)?;
    let rest = process.says("legacy-bank listens on ").await?;
    let address = rest.split(' ').next().and_then(|word| word.parse().ok());
    let address = address.ok_or_else(|| io::Error::other(format!("the bank listens on `{rest}`")))?;
    process.ready(address, "/stats").await?;
    Ok(Proxy { process, address })
}

async fn start_plain(programs: &Programs, directory: &Path, bank: SocketAddr) -> io::Result<Proxy> {
    let address = free_address();
    let file = directory.join("plain-envoy.json");
    fs::write(&file, plain_bootstrap(address, bank).to_string())?;
    let arguments = [
        "-c",
        &file.display().to_string(),
        "--concurrency",
        &ENVOY_WORKERS.to_string(),
        "--disable-hot-restart",
        "--log-level",
        "warning",
    ];
    let mut process = Process::start("plain-envoy", directory, &programs.envoy, &arguments.map(str::to_owned))?;
    process.ready(address, "/stats").await?;
    Ok(Proxy { process, address })
}

/// Turnstile as users start it. It answers a page of the bank when both the proxy and the host are up.
async fn start_turnstile(programs: &Programs, directory: &Path, bank: SocketAddr) -> io::Result<Guarded> {
    let (address, admin) = (free_address(), free_address());
    let arguments = [
        "guard".to_owned(),
        format!("--listen={address}"),
        format!("--upstream=http://{bank}"),
        format!("--rule={RULE}"),
        format!("--envoy={}", programs.envoy.display()),
        format!("--admin-listen={admin}"),
        format!("--database={}", directory.join("locks.db").display()),
        format!("--concurrency={ENVOY_WORKERS}"),
    ];
    let mut process = Process::start("turnstile", directory, &programs.turnstile, &arguments)?;
    process.ready(admin, "/ready").await?;
    process.ready(address, "/stats").await?;
    Ok(Guarded { proxy: Proxy { process, address }, admin })
}

async fn balance(bank: SocketAddr, account: &str) -> io::Result<i64> {
    let answer = Ask::get(&format!("/accounts/{account}")).send(bank).await.map_err(io::Error::other)?;
    if answer.status == 404 {
        return Ok(0);
    }
    let value: serde_json::Value = serde_json::from_slice(&answer.body)?;
    let balance = value.get("balance").and_then(serde_json::Value::as_i64);
    balance.ok_or_else(|| io::Error::other(format!("the bank answered {}: {value}", answer.status)))
}

/// The proxy that people have today: the same route, without the filter.
fn plain_bootstrap(listen: SocketAddr, upstream: SocketAddr) -> serde_json::Value {
    let address = |of: SocketAddr| serde_json::json!({ "socket_address": { "address": of.ip().to_string(), "port_value": of.port() } });
    serde_json::json!({ "static_resources": {
        "listeners": [{
            "address": address(listen),
            "filter_chains": [{ "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "plain",
                    "route_config": { "virtual_hosts": [{
                        "name": "bank",
                        "domains": ["*"],
                        "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "bank", "timeout": "60s" } }],
                    }] },
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
                    }],
                },
            }] }],
        }],
        "clusters": [{
            "name": "bank",
            "type": "STATIC",
            "connect_timeout": "5s",
            "load_assignment": {
                "cluster_name": "bank",
                "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(upstream) } }] }],
            },
        }],
    } })
}

/// How long the whole demo may take before it is called stuck.
pub fn time_limit(options: &Options) -> Duration {
    // All deposits one after the other, thrice, and a minute for starting and for slow machines.
    let deposits = u32::try_from(options.deposits).unwrap_or(u32::MAX);
    Duration::from_secs(60) + (options.work + Duration::from_millis(3)).saturating_mul(deposits).saturating_mul(3)
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

fn told(what: &str) {
    println!("      {what}");
}
