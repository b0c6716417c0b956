//! What happens to the members of an etcd of three: while a majority works, nobody is turned away.

use std::time::Duration;

use turnstile_tests::etcd::{Etcd, EtcdConfig};
use turnstile_tests::scene::{LEASE, Refusals, Scene, Script};
use turnstile_tests::wait::{PATIENCE, until};

use crate::etcd_hosts::on;

async fn cluster() -> Etcd {
    Etcd::start(&EtcdConfig::cluster()).await
}

/// Breaks if hosts do not go to another member, or lose their leases in an election.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_killed() {
    let mut etcd = cluster().await;
    let mut scene = Scene::open(on(&etcd, "etcd leader killed")).await;
    let leader = etcd.leader().await;
    scene.strike();
    etcd.kill(leader);
    etcd.leader().await;
    scene.mend();
    scene.recovered().await;
    scene.outlast(LEASE * 2).await;
    etcd.restart(leader);
    etcd.ready().await;
    scene.every_hot_key().await;
    scene.close(Refusals::None).await.verdict.assert_undisturbed();
}

/// Breaks if a leader that answers nothing holds up a host for longer than its lease, or if what a deposed leader says
/// when it wakes is believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_frozen_and_woken() {
    let mut etcd = cluster().await;
    let mut scene = Scene::open(on(&etcd, "etcd leader frozen, woken")).await;
    let leader = etcd.leader().await;
    scene.strike();
    etcd.freeze(leader).await;
    etcd.leader().await;
    scene.mend();
    scene.recovered().await;
    scene.outlast(LEASE * 2).await;
    etcd.thaw(leader);
    etcd.ready().await;
    scene.every_hot_key().await;
    scene.close(Refusals::None).await.verdict.assert_undisturbed();
}

/// Breaks if a host stays with a member that is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_is_killed() {
    let mut etcd = cluster().await;
    let mut scene = Scene::open(on(&etcd, "etcd follower killed")).await;
    let follower = etcd.follower().await;
    scene.strike();
    etcd.kill(follower);
    scene.mend();
    scene.recovered().await;
    scene.outlast(LEASE * 2).await;
    etcd.restart(follower);
    etcd.ready().await;
    scene.every_hot_key().await;
    scene.close(Refusals::None).await.verdict.assert_undisturbed();
}

/// Breaks if anything is granted without a majority, or if hosts do not find back to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_majority_is_lost_and_comes_back() {
    let mut etcd = cluster().await;
    let mut scene = Scene::open(Script { long_keys: 4, ..on(&etcd, "etcd majority lost until leases are over") }).await;
    scene.strike();
    etcd.kill(0);
    etcd.kill(1);
    for host in &scene.stage.hosts {
        until("the host to lose its lease", PATIENCE, async || (!host.probe("/ready").await).then_some(())).await;
    }
    // A lease that an etcd without majority were believed to renew would show now.
    let seen = scene.stage.upstream.count();
    tokio::time::sleep(LEASE).await;
    assert_eq!(scene.stage.upstream.count(), seen, "nothing is let through without a lease");
    etcd.restart(0);
    etcd.restart(1);
    etcd.ready().await;
    scene.mend();
    scene.recovered().await;
    scene.close(Refusals::LostHolds).await.verdict.assert_undisturbed();
}

/// Breaks if hosts hold on to a member that is no longer one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_replaced() {
    let mut etcd = cluster().await;
    let mut scene = Scene::open(on(&etcd, "etcd member replaced")).await;
    let follower = etcd.follower().await;
    scene.strike();
    etcd.replace(follower).await;
    scene.mend();
    scene.recovered().await;
    scene.close(Refusals::None).await.verdict.assert_undisturbed();
}

/// Breaks if short pauses of the leader, each followed by an election or not, cost a lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_stalls_again_and_again() {
    let mut etcd = cluster().await;
    let mut scene = Scene::open(on(&etcd, "etcd leader stalls 0.3 s, ten times")).await;
    scene.strike();
    for _ in 0..10 {
        let leader = etcd.leader().await;
        etcd.freeze(leader).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        etcd.thaw(leader);
        scene.more(20).await;
    }
    scene.mend();
    scene.recovered().await;
    scene.close(Refusals::None).await.verdict.assert_undisturbed();
}

/// Breaks if a store that takes its time, but less than a request may, costs a lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_is_slow() {
    let etcd = cluster().await;
    let mut scene = Scene::open(on(&etcd, "etcd answers 0.1 to 0.2 s late")).await;
    scene.strike();
    let links = || scene.stage.store_links.iter().flatten();
    links().for_each(|link| link.slow_down(Duration::from_millis(50)));
    scene.outlast(LEASE * 2).await;
    links().for_each(|link| link.heal());
    scene.mend();
    scene.recovered().await;
    scene.close(Refusals::None).await.verdict.assert_undisturbed();
}
