//! A cluster that is set back to a snapshot, or replaced by another: no epoch comes twice.

use std::time::Duration;

use turnstile_core::{Epoch, LockKey};
use turnstile_host::clock;
use turnstile_host::store::Event;
use turnstile_tests::etcd::{Etcd, EtcdConfig};

use crate::Place;
use crate::conformance::Harness;
use crate::conformance::hosts::{Host, key};

const DELAY: Duration = Duration::from_millis(500);

/// Claims again and again for a while, as a driver does; nothing at or below `last` may be gained.
async fn gains_nothing_below(host: &mut Host, key: &LockKey, last: Epoch, patience: Duration) {
    host.report_failures();
    let end = clock::now() + patience;
    while clock::now() < end {
        host.claim(key, DELAY);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let low = |event: &Event| matches!(event, Event::Gained { epoch, .. } if *epoch <= last);
        assert_eq!(host.count(low), 0, "an epoch at or below {last:?} was given out again");
    }
}

/// Takes the key until its epoch is well above what a snapshot has that was taken before.
async fn raise(host: &mut Host, key: &LockKey) -> Epoch {
    let mut last = Epoch(0);
    for _ in 0..30 {
        last = host.take(key, DELAY).await.epoch;
    }
    last
}

async fn set_back(config: EtcdConfig) {
    let mut etcd = Etcd::start(&config).await;
    let place = Place::on(&etcd);
    let account = key("t/account");
    let mut a = Host::start(&place).await;
    let mut b = Host::start(&place).await;
    a.take(&account, DELAY).await;
    b.queue_for(&account, DELAY).await;
    let snapshot = etcd.save().await;
    let mut last = raise(&mut a, &account).await;
    // The last one of all is b's: a has never seen its epoch.
    a.give_up(&account);
    last = last.max(b.gained(&account).await.epoch);
    b.renewed().await;
    let lease = b.leased_until;
    etcd.restore(&snapshot).await;
    a.lease_lost().await;
    b.lease_lost().await;
    let patience = place.lease_ttl() * 4;
    tokio::join!(
        gains_nothing_below(&mut a, &account, last, patience),
        gains_nothing_below(&mut b, &account, last, patience)
    );
    // As its operator does it now: everything is started anew, with a base above all that was given out.
    a.kill().await;
    b.kill().await;
    let mut c = Host::start(&place.with(|config| config.epoch_base = last.0 * 2)).await;
    c.claim(&account, DELAY);
    let gained = c.gained(&account).await;
    assert!(gained.epoch > Epoch(last.0 * 2), "{gained:?}");
    assert!(gained.quarantined_until.max(gained.seen) >= lease + DELAY, "{gained:?} despite the lease until {lease:?}");
    c.settle().await;
    assert_eq!(c.count(|event| matches!(event, Event::LeaseLost | Event::Lost { .. })), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_restored_repeats_no_epoch() {
    set_back(EtcdConfig::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_restored_on_three_members_repeats_no_epoch() {
    set_back(EtcdConfig::cluster()).await;
}

/// Where the revisions of the restored cluster have grown past all that was given out, there is no danger any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_saw_the_cluster_go_back_goes_on_above_all_that_it_knew() {
    let mut etcd = Etcd::start(&EtcdConfig::default()).await;
    let place = Place::on(&etcd);
    let account = key("t/account");
    let mut a = Host::start(&place).await;
    a.take(&account, DELAY).await;
    let snapshot = etcd.save().await;
    let last = raise(&mut a, &account).await;
    a.renewed().await;
    let lease = a.leased_until;
    etcd.restore(&snapshot).await;
    a.lease_lost().await;
    while etcd.revision().await <= last.0 * 2 {
        etcd.put("of others", "-").await;
    }
    a.renewed().await;
    assert!(clock::now() >= lease + DELAY, "granted again before the old promises had passed");
    a.claim(&account, DELAY);
    assert!(a.gained(&account).await.epoch > last);
}

/// The way of an operator who does not stop the hosts first: another host raises the base.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raised_base_lets_hosts_go_on_that_saw_the_cluster_go_back() {
    let mut etcd = Etcd::start(&EtcdConfig::default()).await;
    let place = Place::on(&etcd);
    let account = key("t/account");
    let mut a = Host::start(&place).await;
    let snapshot = etcd.save().await;
    let last = raise(&mut a, &account).await;
    etcd.restore(&snapshot).await;
    a.lease_lost().await;
    let _b = Host::start(&place.with(|config| config.epoch_base = last.0 * 2)).await;
    a.renewed().await;
    a.claim(&account, DELAY);
    assert!(a.gained(&account).await.epoch > Epoch(last.0 * 2));
}

/// Another cluster at the same address, with nothing in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_was_emptied_repeats_no_epoch() {
    let mut etcd = Etcd::start(&EtcdConfig::default()).await;
    let snapshot = etcd.save().await;
    let place = Place::on(&etcd);
    let account = key("t/account");
    let mut a = Host::start(&place).await;
    let last = raise(&mut a, &account).await;
    etcd.restore(&snapshot).await;
    a.lease_lost().await;
    gains_nothing_below(&mut a, &account, last, place.lease_ttl() * 4).await;
}
