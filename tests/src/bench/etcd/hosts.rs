//! Turnstile's hosts on the bench's etcd.

use crate::etcd::Etcd;
use crate::host::{Host, HostConfig, StoreConfig};

/// Starts hosts as they are shipped, but for the lines `ownership` of that section. What hosts of another `number`
/// left in etcd is none of theirs. They share `core`, if it is given.
pub async fn start_hosts(etcd: &Etcd, count: usize, number: u32, ownership: &str, core: Option<usize>) -> Vec<Host> {
    let config = HostConfig {
        ttl_ms: 4_000,
        heartbeat_ms: 1_000,
        lease_ms: 5_000,
        store: StoreConfig::Etcd(etcd.endpoints()),
        // The first line still belongs to [store].
        more: format!("prefix = \"turnstile-{number}/\"\n[ownership]\n{ownership}"),
        core,
        ..HostConfig::default()
    };
    let mut hosts: Vec<Host> = Vec::new();
    for _ in 0..count {
        let host = match hosts.first() {
            None => Host::start(&config).await,
            Some(first) => Host::start_beside(first, &config).await,
        };
        hosts.push(host);
    }
    hosts
}
