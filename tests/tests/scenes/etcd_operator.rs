//! What operators do to an etcd under load: compaction, leases revoked by hand, and a snapshot restored.

use turnstile_tests::etcd::{Etcd, EtcdConfig};
use turnstile_tests::host::HostConfig;
use turnstile_tests::scene::{Refusals, Scene, Script};
use turnstile_tests::stage::Routing;
use turnstile_tests::wait::{PATIENCE, until};

use crate::etcd_hosts::on;

/// Breaks if a compaction takes away what a watch has not seen yet, and the host does not look for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_is_compacted() {
    let etcd = Etcd::start(&EtcdConfig::default()).await;
    // Hosts contend for every key, so that wakes are written all the time.
    let mut scene = Scene::open(Script { routing: Routing::Pinned, ..on(&etcd, "etcd compacted, ten times") }).await;
    scene.strike();
    for _ in 0..10 {
        let revision = etcd.revision().await.to_string();
        etcd.ctl(&["compact", "--physical", &revision]).await;
        scene.every_hot_key().await;
    }
    scene.mend();
    scene.recovered().await;
    scene.close(Refusals::None).await.verdict.assert_undisturbed();
}

/// Breaks if a host watches from a revision that is compacted when its connection comes back, and stays deaf.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_is_compacted_while_a_host_is_away() {
    let etcd = Etcd::start(&EtcdConfig::default()).await;
    let script = Script { routing: Routing::Pinned, ..on(&etcd, "etcd compacted while a host is away") };
    let mut scene = Scene::open(script).await;
    scene.strike();
    scene.stage.store_links[0][0].cut();
    // Keys go on passing to the other host, as far as the first one need not be asked.
    scene.more(100).await;
    etcd.put("somebody-else", "writes").await;
    let revision = etcd.revision().await.to_string();
    etcd.ctl(&["compact", "--physical", &revision]).await;
    scene.mend();
    scene.stage.store_links[0][0].heal();
    scene.recovered().await;
    scene.close(Refusals::LostHolds).await.verdict.assert_undisturbed();
}

/// Breaks if a host whose lease was ended by somebody else goes on granting for longer than its promises, if it does
/// not start anew, or if others take its keys too early.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lease_of_a_host_is_revoked() {
    let etcd = Etcd::start(&EtcdConfig::default()).await;
    let mut scene = Scene::open(Script { long_keys: 4, ..on(&etcd, "lease revoked by hand") }).await;
    let hosts = etcd.keys("turnstile/hosts/").await;
    assert_eq!(hosts.len(), 2, "{hosts:?}");
    scene.strike();
    etcd.revoke(hosts[0].lease).await;
    scene.mend();
    scene.recovered().await;
    until("another incarnation in its place", PATIENCE, async || {
        let now = etcd.keys("turnstile/hosts/").await;
        (now.len() == 2 && now.iter().all(|host| host.key != hosts[0].key)).then_some(())
    })
    .await;
    scene.close(Refusals::LostHolds).await.verdict.assert_undisturbed();
}

/// Breaks if hosts believe an etcd that has forgotten their latest epochs: tokens would repeat. An operator who lifts
/// the epochs over all that was handed out gets it going again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_restored() {
    let mut etcd = Etcd::start(&EtcdConfig::default()).await;
    // Hosts contend for every key, so that epochs rise all the time.
    let script = Script { routing: Routing::Pinned, ..on(&etcd, "etcd restored to an older revision") };
    let mut scene = Scene::open(script.clone()).await;
    let snapshot = etcd.save().await;
    let saved_at = etcd.revision().await;
    scene.every_hot_key().await;
    until("epochs to rise", PATIENCE, async || (etcd.revision().await > saved_at + 100).then_some(())).await;
    scene.strike();
    etcd.restore(&snapshot).await;
    for host in &scene.stage.hosts {
        until("the host to stop granting", PATIENCE, async || (!host.probe("/ready").await).then_some(())).await;
    }
    let mut highest = 0;
    scene.stage.upstream.look(0, |execution| {
        highest = execution.locks().iter().filter_map(|(_, token)| *token).fold(highest, u64::max);
    });
    let epoch_base = (highest >> SEQUENCE_BITS) + 1;
    scene.stage.reconfigure(&HostConfig { epoch_base, ..script.host() });
    for host in &mut scene.stage.hosts {
        host.restart();
    }
    scene.mend();
    scene.recovered().await;
    scene.close(Refusals::LostHolds).await.verdict.assert_undisturbed();
}

/// A token is an epoch and, in this many bits, a sequence.
const SEQUENCE_BITS: u32 = 20;
