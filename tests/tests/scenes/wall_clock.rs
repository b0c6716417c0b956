//! The wall clock of a host jumps. etcd's cannot be moved so (Go asks the kernel directly); it counts its leases on a
//! monotonic clock.

use std::collections::BTreeSet;

use turnstile_tests::etcd::{Etcd, EtcdConfig};
use turnstile_tests::scene::{LEASE, Refusals, Scene, Script};
use turnstile_tests::session_client::Session;
use turnstile_tests::wall_clock::WallClock;

use crate::etcd_hosts::on;

const DAY: i64 = 24 * 60 * 60;

/// Breaks if a lease, a promise, a wait or a lock delay is counted on the wall clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_a_jumping_clock_on_etcd() {
    let etcd = Etcd::start(&EtcdConfig::default()).await;
    jump(on(&etcd, "wall clock of a host jumps by 1 and -2 days")).await;
}

/// As above, with a store whose hosts tell by themselves who is dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_a_jumping_clock_on_sqlite() {
    jump(Script::new("SQLite: wall clock jumps by 1 and -2 days")).await;
}

async fn jump(script: Script) {
    let mut scene = Scene::open(script).await;
    let clock = WallClock::right();
    let host = &mut scene.stage.hosts[0];
    host.environment = clock.environment();
    host.restart();
    host.ready().await;
    scene.every_hot_key().await;
    scene.strike();
    for seconds in [DAY, -DAY] {
        clock.jump(seconds);
        // The host says so in its log, and when.
        Session::open(scene.stage.hosts[0].sessions, "clock").await;
        // Long enough for a lease to run out, if it were counted on that clock.
        tokio::time::sleep(LEASE).await;
        scene.every_hot_key().await;
    }
    let log = scene.stage.hosts[0].process.output();
    let days: BTreeSet<&str> = log.lines().filter_map(|line| line.split_once('T')).map(|(day, _)| day).collect();
    assert!(days.len() >= 3, "the host has taken it for yesterday, today and tomorrow: {days:?}");
    scene.mend();
    scene.recovered().await;
    scene.close(Refusals::None).await.verdict.assert_undisturbed();
}
