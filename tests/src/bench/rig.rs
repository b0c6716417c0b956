//! What one row needs, running: an Envoy with one filter, and the service that the filter asks.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::authz::{self, Kind};
use super::row::Row;
use super::wrk::{Figures, Window, Wrk};
use super::{Fault, machine};
use crate::artifacts;
use crate::bootstrap::Bootstrap;
use crate::envoy::Envoy;
use crate::host::{Host, HostConfig};
use crate::process::Process;
use crate::wait::{PATIENCE, until};

/// The written-down Envoy configuration.
const BOOTSTRAP: &str = include_str!("overhead.yaml");

/// The wasm filter that does nothing, as text; Envoy takes the binary form.
const NOOP: &str = include_str!("noop.wat");

const FILTERS: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters";

/// A row, ready to be loaded.
pub struct Rig {
    row: Row,
    envoy: Envoy,
    service: Service,
    /// Requests that were answered with success so far.
    answered: u64,
    dir: TempDir,
}

/// Who is asked before a request goes on.
enum Service {
    Nobody,
    Authz(Process),
    Host(Host),
}

/// The figures of one window.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// Requests that were answered.
    pub requests: u64,
    /// Requests per second.
    pub requests_per_s: f64,
    /// CPU of Envoy, in microseconds per request.
    pub envoy_us: f64,
    /// CPU of the service that is asked, in microseconds per request.
    pub service_us: Option<f64>,
    /// Median latency, in microseconds.
    pub p50_us: f64,
    /// 99th percentile of the latency, in microseconds.
    pub p99_us: f64,
    /// CPU that other programs on the machine used meanwhile, in cores. About: it is what is left over.
    pub others_cores: f64,
}

/// CPU used so far.
struct Used {
    envoy: Duration,
    service: Option<Duration>,
    load: Duration,
    all: Duration,
}

impl Rig {
    /// Starts what `row` needs.
    ///
    /// # Errors
    /// If a file of it cannot be written.
    pub async fn start(row: Row) -> Result<Self, Fault> {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let (service, cluster) = match row {
            Row::NoFilter | Row::NoopWasm => (Service::Nobody, None),
            Row::AuthzHttp => authz(Kind::Http, "authz_http", dir.path()).await,
            Row::AuthzGrpc => authz(Kind::Grpc, "authz_grpc", dir.path()).await,
            Row::RepeatedKeys | Row::FreshKeys => {
                let host = Host::start(&host_config()).await;
                let cluster = ("turnstile_host", host.sessions);
                (Service::Host(host), Some(cluster))
            }
        };
        let wasm = wasm(row, dir.path())?;
        let envoy = Envoy::start(&bootstrap(row, cluster, wasm.as_deref()), 1).await;
        Ok(Self { row, envoy, service, answered: 0, dir })
    }

    /// Loads it for one window.
    ///
    /// # Errors
    /// If wrk could not run, or a request was not answered with success.
    pub fn load(&mut self, window: &Window) -> Result<Sample, Fault> {
        let wrk = Wrk::new(self.dir.path())?;
        let before = self.used();
        let figures = wrk.run(self.row, self.envoy.listener, window)?;
        let after = self.used();
        self.answered += figures.requests;
        Ok(sample(&before, &after, &figures))
    }

    /// Makes sure, by Envoy's own statistics, that the filter did its work for every request that was answered.
    ///
    /// # Errors
    /// If it did not.
    pub async fn verify(&self) -> Result<(), Fault> {
        self.expect_at_least("http.bench.downstream_rq_2xx", self.answered).await?;
        match self.row {
            Row::NoFilter => {
                let wasm = "wasm.envoy.wasm.runtime.v8.created";
                if self.envoy.stat(wasm).await.is_some_and(|count| count > 0) {
                    return Err(self.idle(wasm, "more than 0", "0"));
                }
                Ok(())
            }
            Row::NoopWasm => self.expect_at_least("wasm.envoy.wasm.runtime.v8.active", 1).await,
            Row::AuthzHttp | Row::AuthzGrpc => {
                self.expect_at_least("http.bench.ext_authz.ok", self.answered).await?;
                self.expect_none(&["denied", "error", "disabled"].map(|name| format!("http.bench.ext_authz.{name}")))
                    .await
            }
            Row::RepeatedKeys | Row::FreshKeys => {
                for name in ["guarded", "granted", "released_unsent"] {
                    self.expect_at_least(&plugin_stat(name), self.answered).await?;
                }
                let failures =
                    ["conflict", "timeout", "busy", "host_unavailable", "bypassed", "refused", "lost", "errors"];
                self.expect_none(&failures.map(plugin_stat)).await
            }
        }
    }

    fn used(&self) -> Used {
        let service = match &self.service {
            Service::Nobody => None,
            Service::Authz(process) => Some(process.cpu_time()),
            Service::Host(host) => Some(host.process.cpu_time()),
        };
        let (load, all) = (machine::ended_children(), machine::busy());
        Used { envoy: self.envoy.process.cpu_time(), service, load, all }
    }

    /// The plugin's counts reach Envoy with its next tick, so this looks again for a while.
    async fn expect_at_least(&self, stat: &str, least: u64) -> Result<(), Fault> {
        let reached = async || self.envoy.stat(stat).await.is_some_and(|count| count >= least);
        for _ in 0..50 {
            if reached().await {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let got = self.envoy.stat(stat).await.map_or("absent".to_owned(), |count| count.to_string());
        Err(self.idle(stat, &got, &format!("at least {least}, the requests that were answered")))
    }

    async fn expect_none(&self, stats: &[String]) -> Result<(), Fault> {
        for stat in stats {
            if let Some(count @ 1..) = self.envoy.stat(stat).await {
                return Err(self.idle(stat, &count.to_string(), "0"));
            }
        }
        Ok(())
    }

    fn idle(&self, what: &str, got: &str, expected: &str) -> Fault {
        let row = self.row.title();
        Fault::Idle { row, what: what.to_owned(), got: got.to_owned(), expected: expected.to_owned() }
    }
}

fn plugin_stat(name: &str) -> String {
    format!("wasmcustom.turnstile.{name}")
}

/// The host as it is shipped: its own defaults.
fn host_config() -> HostConfig {
    HostConfig { ttl_ms: 4_000, heartbeat_ms: 1_000, lease_ms: 5_000, ..HostConfig::default() }
}

async fn authz(kind: Kind, cluster: &'static str, dir: &Path) -> (Service, Option<(&'static str, SocketAddr)>) {
    let program = std::env::current_exe().expect("the running program has a path");
    let process =
        Process::start("the ext_authz server", &program, &[kind.command().to_owned()], &dir.join("authz.log"));
    let listening = async || authz::address_in(&process.output());
    let address = until("the ext_authz server to listen", PATIENCE, listening).await;
    (Service::Authz(process), Some((cluster, address)))
}

/// The wasm file of the row's filter, if it has one.
fn wasm(row: Row, dir: &Path) -> Result<Option<PathBuf>, Fault> {
    Ok(match row {
        Row::NoopWasm => {
            let path = dir.join("noop.wasm");
            let binary = wat::parse_str(NOOP)?;
            std::fs::write(&path, binary).map_err(|error| Fault::File(path.clone(), error))?;
            Some(path)
        }
        Row::RepeatedKeys | Row::FreshKeys => Some(artifacts::plugin_wasm()),
        Row::NoFilter | Row::AuthzHttp | Row::AuthzGrpc => None,
    })
}

/// The written-down bootstrap with no filter but the row's own, and everything in its place.
fn bootstrap(row: Row, service: Option<(&str, SocketAddr)>, wasm: Option<&Path>) -> Bootstrap {
    let mut bootstrap: Value = serde_saphyr::from_str(BOOTSTRAP).expect("overhead.yaml is YAML");
    let filters = at(&mut bootstrap, FILTERS).as_array_mut().expect("a list of filters");
    filters.retain(|filter| {
        let name = filter["name"].as_str();
        name == row.filter() || name == Some("envoy.filters.http.router")
    });
    assert_eq!(filters.len(), 1 + usize::from(row.filter().is_some()), "overhead.yaml has the filter of {row:?}");
    if let Some(wasm) = wasm {
        *at(&mut filters[0], "/typed_config/config/vm_config/code/local/filename") = json!(wasm);
    }
    if let Some((name, address)) = service {
        let clusters = at(&mut bootstrap, "/static_resources/clusters").as_array_mut().expect("a list of clusters");
        let cluster = clusters.iter_mut().find(|cluster| cluster["name"] == name).expect("the cluster of the row");
        let endpoint = at(cluster, "/load_assignment/endpoints/0/lb_endpoints/0/endpoint");
        *at(endpoint, "/address/socket_address/port_value") = json!(address.port());
    }
    Bootstrap::of(bootstrap)
}

fn at<'v>(value: &'v mut Value, pointer: &str) -> &'v mut Value {
    value.pointer_mut(pointer).unwrap_or_else(|| panic!("overhead.yaml has no {pointer} where it should"))
}

fn sample(before: &Used, after: &Used, figures: &Figures) -> Sample {
    let requests = figures.requests as f64;
    let seconds = figures.duration_us as f64 / 1e6;
    let us_per_request = |used: Duration| used.as_secs_f64() * 1e6 / requests;
    let envoy = after.envoy.saturating_sub(before.envoy);
    let service = after.service.zip(before.service).map(|(after, before)| after.saturating_sub(before));
    let ours = envoy + service.unwrap_or_default() + after.load.saturating_sub(before.load);
    let others = after.all.saturating_sub(before.all).saturating_sub(ours);
    Sample {
        requests: figures.requests,
        requests_per_s: requests / seconds,
        envoy_us: us_per_request(envoy),
        service_us: service.map(us_per_request),
        p50_us: figures.p50_us as f64,
        p99_us: figures.p99_us as f64,
        others_cores: others.as_secs_f64() / seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::program::Rows;

    #[test]
    fn every_row_keeps_its_own_filter_and_no_other() {
        let service = Some(("turnstile_host", SocketAddr::from(([127, 0, 0, 1], 4711))));
        for &row in Row::ALL {
            let has_wasm = matches!(row, Row::NoopWasm | Row::RepeatedKeys | Row::FreshKeys);
            let text = bootstrap(row, service, has_wasm.then(|| Path::new("some.wasm"))).to_json();
            assert!(text.contains("4711") && !text.contains("FILLED-IN"), "{text}");
            let value: Value = serde_json::from_str(&text).unwrap();
            let filters = value.pointer(FILTERS).and_then(Value::as_array).unwrap();
            let names: Vec<&str> = filters.iter().map(|filter| filter["name"].as_str().unwrap()).collect();
            let own: Vec<&str> = row.filter().into_iter().chain(["envoy.filters.http.router"]).collect();
            assert_eq!(names, own, "{row:?}");
        }
    }

    #[test]
    fn cpu_is_shared_out_among_the_requests() {
        let used = |envoy, service, load, all| {
            let time = Duration::from_millis;
            Used { envoy: time(envoy), service: Some(time(service)), load: time(load), all: time(all) }
        };
        let line = r#"{"requests":1000,"duration_us":2000000,"p50_us":5,"p99_us":9,"failed_connect":0,"failed_read":0,
            "failed_write":0,"failed_timeout":0,"failed_status":0}"#;
        let figures: Figures = serde_json::from_str(line).unwrap();
        let sample = sample(&used(100, 10, 0, 1_000), &used(150, 30, 40, 1_210), &figures);
        assert_eq!((sample.envoy_us, sample.service_us, sample.requests_per_s), (50.0, Some(20.0), 500.0));
        // 210 ms of the machine, of which 110 ms are ours, in 2 s.
        assert!((sample.others_cores - 0.05).abs() < 1e-9, "{sample:?}");
    }
}
