//! Several hosts on one store, proxies, and the recording upstream, with a link in every place where a network may
//! break: between each proxy and each host, and between each host and each member of the store.

use std::net::SocketAddr;

use serde_json::json;

use crate::bootstrap::Bootstrap;
use crate::envoy::Envoy;
use crate::host::{Host, HostConfig, StoreConfig};
use crate::link::Link;
use crate::upstream::Upstream;
use crate::world;

/// Which hosts a proxy knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// All of them: each key goes to the one that it prefers.
    Spread,
    /// Each proxy knows the host of its own number alone, so that hosts contend for every key.
    Pinned,
}

/// What to set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Rules of the filter, as lines.
    pub rules: Vec<String>,
    /// The configuration of every host, without the store's place.
    pub host: HostConfig,
    /// Addresses of the members of an etcd cluster; none for one SQLite file.
    pub etcd: Vec<SocketAddr>,
    /// How many hosts.
    pub hosts: usize,
    /// How many proxies, each with two workers.
    pub envoys: usize,
    /// Which hosts a proxy knows.
    pub routing: Routing,
}

/// All of it, running.
pub struct Stage {
    /// The proxies.
    pub envoys: Vec<Envoy>,
    /// The lock service.
    pub hosts: Vec<Host>,
    /// From each proxy to each host: `routes[proxy][host]`.
    pub routes: Vec<Vec<Link>>,
    /// From each host to each member of the store: `store_links[host][member]`.
    pub store_links: Vec<Vec<Link>>,
    /// The guarded application.
    pub upstream: Upstream,
}

impl Stage {
    /// Starts everything, and waits until it is ready.
    ///
    /// # Panics
    /// If anything does not become ready.
    pub async fn set(setup: &Setup) -> Self {
        let upstream = Upstream::start().await;
        let (mut hosts, mut store_links) = (Vec::<Host>::new(), Vec::new());
        for _ in 0..setup.hosts {
            let mut links = Vec::new();
            for member in &setup.etcd {
                links.push(Link::to(*member).await);
            }
            let config = on_store(&setup.host, &links);
            hosts.push(match hosts.first() {
                Some(first) => Host::start_beside(first, &config).await,
                None => Host::start(&config).await,
            });
            store_links.push(links);
        }
        let (mut bootstraps, mut routes) = (Vec::new(), Vec::new());
        for number in 0..setup.envoys {
            let mut links = Vec::new();
            for host in &hosts {
                links.push(Link::to(host.sessions).await);
            }
            bootstraps.push(bootstrap(setup, number, &links, upstream.address));
            routes.push(links);
        }
        let envoys = Envoy::start_all(&bootstraps, 2).await;
        Self { envoys, hosts, routes, store_links, upstream }
    }

    /// Gives every host another configuration, which counts from its next restart on.
    pub fn reconfigure(&self, config: &HostConfig) {
        for (host, links) in self.hosts.iter().zip(&self.store_links) {
            host.reconfigure(&on_store(config, links));
        }
    }

    /// Where clients connect, for each proxy.
    pub fn proxies(&self) -> Vec<SocketAddr> {
        self.envoys.iter().map(|envoy| envoy.listener).collect()
    }
}

/// The configuration of one host, whose way to the store are these links.
fn on_store(config: &HostConfig, links: &[Link]) -> HostConfig {
    let endpoints: Vec<String> = links.iter().map(|link| format!("http://{}", link.address)).collect();
    let store = if endpoints.is_empty() { StoreConfig::Sqlite } else { StoreConfig::Etcd(endpoints) };
    HostConfig { store, ..config.clone() }
}

fn bootstrap(setup: &Setup, proxy: usize, links: &[Link], upstream: SocketAddr) -> Bootstrap {
    let hosts: Vec<SocketAddr> = links.iter().map(|link| link.address).collect();
    let known = match setup.routing {
        Routing::Pinned => &hosts[proxy..=proxy],
        Routing::Spread => &hosts[..],
    };
    let rules: Vec<&str> = setup.rules.iter().map(String::as_str).collect();
    let mut bootstrap = world::bootstrap_for(&rules, known, upstream);
    bootstrap.replace("/node/id", json!(format!("envoy-{proxy}")));
    bootstrap
}
