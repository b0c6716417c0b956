//! Everything together: a host, Envoys with the filter, and the recording upstream behind them.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::artifacts;
use crate::bootstrap::Bootstrap;
use crate::envoy::Envoy;
use crate::host::{Host, HostConfig};
use crate::http::Ask;
use crate::session_client::Session;
use crate::upstream::Upstream;

/// A whole system.
pub struct World {
    /// The proxies, all on the same host and upstream.
    pub envoys: Vec<Envoy>,
    /// The lock service.
    pub host: Host,
    /// The guarded application.
    pub upstream: Upstream,
}

/// What may differ from one world to the next.
pub struct Plan<'a> {
    /// Rules of the filter, as lines.
    pub rules: &'a [&'a str],
    /// The host's configuration.
    pub host: HostConfig,
    /// How many proxies.
    pub envoys: usize,
    /// Worker threads of each proxy.
    pub workers: usize,
}

impl<'a> Plan<'a> {
    /// One proxy with two workers, and short times.
    pub fn of(rules: &'a [&'a str]) -> Self {
        Self { rules, host: HostConfig::default(), envoys: 1, workers: 2 }
    }
}

impl World {
    /// Starts one proxy, a host and an upstream.
    pub async fn start(rules: &[&str]) -> Self {
        Self::start_as(Plan::of(rules)).await
    }

    /// Starts what the plan says.
    pub async fn start_as(plan: Plan<'_>) -> Self {
        let upstream = Upstream::start().await;
        let host = Host::start(&plan.host).await;
        let configuration = configuration(plan.rules);
        let mut envoys = Vec::new();
        for number in 0..plan.envoys {
            let mut bootstrap = bootstrap(&configuration, host.sessions, upstream.address);
            bootstrap.replace("/node/id", json!(format!("envoy-{number}")));
            envoys.push(Envoy::start(&bootstrap, plan.workers).await);
        }
        Self { envoys, host, upstream }
    }

    /// Where clients connect (to the first proxy).
    pub fn proxy(&self) -> SocketAddr {
        self.envoys[0].listener
    }

    /// Where clients connect, for each proxy.
    pub fn proxies(&self) -> Vec<SocketAddr> {
        self.envoys.iter().map(|envoy| envoy.listener).collect()
    }

    /// A session with the host that is no proxy's.
    pub async fn session(&self) -> Session {
        Session::open(self.host.sessions, "test").await
    }

    /// Sends a request that is expected to be answered with 200.
    ///
    /// # Panics
    /// If it is not.
    pub async fn expect_ok(&self, ask: Ask) {
        let answer = ask.send(self.proxy()).await.unwrap_or_else(|fault| panic!("{ask:?}: {fault}"));
        assert_eq!(answer.status, 200, "{ask:?}: {answer:?}");
    }
}

/// The filter's configuration with these rules.
pub fn configuration(rules: &[&str]) -> Value {
    json!({ "cluster": "turnstile_host", "rules": rules })
}

/// The shipped bootstrap with the filter configured so, and everything in its place.
pub fn bootstrap(configuration: &Value, host: SocketAddr, upstream: SocketAddr) -> Bootstrap {
    let mut bootstrap = Bootstrap::shipped();
    bootstrap.place(host, upstream, &artifacts::plugin_wasm()).configure(configuration);
    bootstrap
}
