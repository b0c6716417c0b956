//! What happens to hosts that share an etcd.

use turnstile_tests::etcd::{Etcd, EtcdConfig};
use turnstile_tests::link::Link;
use turnstile_tests::scene::{Refusals, Scene, Script, Use};
use turnstile_tests::wait::{PATIENCE, until};

use crate::plays;

/// One member, which is all that these scenes need.
async fn etcd() -> Etcd {
    Etcd::start(&EtcdConfig::default()).await
}

/// A scene on all members of an etcd.
pub fn on(etcd: &Etcd, name: &'static str) -> Script {
    Script { etcd: (0..etcd.members()).map(|member| etcd.client_address(member)).collect(), ..Script::new(name) }
}

/// Breaks if a dead host's keys are given out before its promises and lock delays are over, or never, or if its proxies
/// do not find back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_killed() {
    plays::killed(on(&etcd().await, "host killed")).await;
}

/// Breaks if a request with wait left is turned away because the host that it waits at dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_killed_while_all_work_is_short() {
    plays::killed_with_short_work(on(&etcd().await, "host killed, short work")).await;
}

/// Breaks if a frozen host, on waking, goes on granting what others have taken over, or if a grant that slept in a
/// socket is acted on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_frozen_past_its_lease() {
    plays::frozen(on(&etcd().await, "host frozen past its lease, woken")).await;
}

/// Breaks if a host goes on granting without a lease, if others do not get its keys, or if it does not find back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_cut_off_from_the_store() {
    cut_off_from_the_store("host cut off from etcd", Link::silence).await;
}

/// Breaks if what a host sends is enough for it to think that it has a lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_does_not_hear_the_store() {
    cut_off_from_the_store("host does not hear etcd", Link::deafen).await;
}

async fn cut_off_from_the_store(name: &'static str, cut: impl Fn(&Link)) {
    let etcd = etcd().await;
    let mut scene = Scene::open(Script { long_keys: 4, ..on(&etcd, name) }).await;
    let victim = scene.host_of(Use::Long, 0).await;
    scene.strike();
    scene.stage.store_links[victim].iter().for_each(cut);
    until("the host to lose its lease", PATIENCE, async || {
        (!scene.stage.hosts[victim].probe("/ready").await).then_some(())
    })
    .await;
    scene.more(100).await;
    scene.mend();
    scene.stage.store_links[victim].iter().for_each(|link| link.heal());
    scene.recovered().await;
    scene.stage.hosts[victim].ready().await;
    plays::takes_traffic(&scene.stage.hosts[victim]).await;
    scene.close(Refusals::LostHolds).await.verdict.assert_undisturbed();
}

/// Breaks if a host keeps the keys of proxies that it does not hear any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_cut_off_from_the_proxies() {
    plays::cut_off_from_the_proxies(on(&etcd().await, "host cut off from the proxies")).await;
}

/// Breaks if a drain cuts somebody off, or if what a host leaves has to be waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_hosts_are_restarted_in_turn() {
    let etcd = etcd().await;
    plays::rolling_restart(Script { hosts: 3, ..on(&etcd, "rolling restart of three hosts") }).await;
}

/// Breaks if a host keeps a key that others want, or if one that waits is passed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hosts_contend_for_a_key() {
    let etcd = etcd().await;
    plays::contended(Script { hosts: 3, ..on(&etcd, "one key, three hosts") }).await;
}

/// Breaks if requests of several keys can wait in a circle across hosts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pairs_of_keys_cross() {
    let etcd = etcd().await;
    plays::crossing_pairs(Script { hosts: 3, ..on(&etcd, "crossing pairs, three hosts") }).await;
}

/// Breaks if a lock delay is forgotten on the way from one host to another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_outlives_its_hold() {
    plays::orphaned_work(on(&etcd().await, "work outlives its hold")).await;
}
