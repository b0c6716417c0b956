//! Everything together: hosts on one store, Envoys with the filter, and the recording upstream behind them.

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
    /// The proxies, all on the same hosts and upstream.
    pub envoys: Vec<Envoy>,
    /// The lock service: one host or several on one store, in the order of the filter's clusters.
    pub hosts: Vec<Host>,
    /// The guarded application.
    pub upstream: Upstream,
}

/// What may differ from one world to the next.
pub struct Plan<'a> {
    /// Rules of the filter, as lines.
    pub rules: &'a [&'a str],
    /// The configuration of each host.
    pub host: HostConfig,
    /// How many hosts: with several, each has an Envoy cluster of its own ([`host_cluster`]).
    pub hosts: usize,
    /// How many proxies.
    pub envoys: usize,
    /// Worker threads of each proxy.
    pub workers: usize,
}

impl<'a> Plan<'a> {
    /// One proxy with two workers, and short times.
    pub fn of(rules: &'a [&'a str]) -> Self {
        Self { rules, host: HostConfig::default(), hosts: 1, envoys: 1, workers: 2 }
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
        let mut hosts = vec![Host::start(&plan.host).await];
        for _ in 1..plan.hosts {
            hosts.push(Host::start_beside(&hosts[0], &plan.host).await);
        }
        let addresses: Vec<SocketAddr> = hosts.iter().map(|host| host.sessions).collect();
        let mut envoys = Vec::new();
        for number in 0..plan.envoys {
            let mut bootstrap = bootstrap_for(plan.rules, &addresses, upstream.address);
            bootstrap.replace("/node/id", json!(format!("envoy-{number}")));
            envoys.push(Envoy::start(&bootstrap, plan.workers).await);
        }
        Self { envoys, hosts, upstream }
    }

    /// Where clients connect (to the first proxy).
    pub fn proxy(&self) -> SocketAddr {
        self.envoys[0].listener
    }

    /// Where clients connect, for each proxy.
    pub fn proxies(&self) -> Vec<SocketAddr> {
        self.envoys.iter().map(|envoy| envoy.listener).collect()
    }

    /// A session with the first host that is no proxy's.
    pub async fn session(&self) -> Session {
        Session::open(self.hosts[0].sessions, "test").await
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

/// The filter's configuration with these rules, and one host.
pub fn configuration(rules: &[&str]) -> Value {
    json!({ "cluster": "turnstile_host", "rules": rules })
}

/// The name of the Envoy cluster of one of several hosts.
pub fn host_cluster(number: usize) -> String {
    format!("turnstile_host_{number}")
}

/// The shipped bootstrap with these rules and hosts, and everything in its place. Several hosts have a cluster each.
pub fn bootstrap_for(rules: &[&str], hosts: &[SocketAddr], upstream: SocketAddr) -> Bootstrap {
    let mut bootstrap = bootstrap(&configuration(rules), hosts[0], upstream);
    if hosts.len() > 1 {
        let names: Vec<String> = (0..hosts.len()).map(host_cluster).collect();
        let clusters: Vec<(&str, SocketAddr)> = names.iter().map(String::as_str).zip(hosts.iter().copied()).collect();
        bootstrap.several_hosts(&clusters).configure(&json!({ "clusters": names, "rules": rules }));
    }
    bootstrap
}

/// The shipped bootstrap with the filter configured so, and everything in its place.
pub fn bootstrap(configuration: &Value, host: SocketAddr, upstream: SocketAddr) -> Bootstrap {
    let mut bootstrap = Bootstrap::shipped();
    bootstrap.place(host, upstream, &artifacts::plugin_wasm()).configure(configuration);
    bootstrap
}
