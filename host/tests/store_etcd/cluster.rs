//! Members that die, freeze, come back or are replaced: who lives keeps what it has, and nobody gains what is another's.

use std::time::Duration;

use turnstile_core::Epoch;
use turnstile_host::clock;
use turnstile_host::store::{Event, StoreError};
use turnstile_tests::etcd::{Etcd, EtcdConfig};
use turnstile_tests::wait::{PATIENCE, until};

use crate::conformance::Harness;
use crate::conformance::hosts::{Host, key};
use crate::conformance::ownership;
use crate::{LONG_TTL, Place};

const DELAY: Duration = Duration::from_millis(300);

fn lease_lost(event: &Event) -> bool {
    *event == Event::LeaseLost
}

/// Two hosts; `a` owns `t/owned`, for which `b` waits. Both ask `member` first.
async fn owner_and_waiter(place: &Place) -> (Host, Host, Epoch) {
    let (mut a, mut b) = (Host::start(place).await, Host::start(place).await);
    let epoch = a.take(&key("t/owned"), DELAY).await.epoch;
    b.queue_for(&key("t/owned"), DELAY).await;
    a.contended(&key("t/owned")).await;
    (a, b, epoch)
}

/// After a trouble that no lease died of: both live on, `a` still has its key and `b` its place, and all goes on.
async fn all_goes_on(mut a: Host, mut b: Host, before: Epoch) {
    let free = a.take(&key("t/free-a"), DELAY).await;
    assert!(free.quarantined_until <= free.seen);
    b.take(&key("t/free-b"), DELAY).await;
    a.settle().await;
    b.settle().await;
    assert_eq!(a.count(lease_lost) + b.count(lease_lost), 0, "no lease died of it");
    assert_eq!(a.count(|event| matches!(event, Event::Lost { .. })), 0);
    assert!(!b.has_gained(&key("t/owned")), "it is still another's");
    a.give_up(&key("t/owned"));
    let gained = b.gained(&key("t/owned")).await;
    assert!(gained.epoch > before && gained.quarantined_until <= gained.seen);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_the_leader_is_nobody_elses() {
    let mut etcd = Etcd::start(&EtcdConfig::cluster()).await;
    let leader = etcd.leader().await;
    // One host is connected to the leader, the other is not.
    let place = Place::on(&etcd).long_leases();
    let (a, b, epoch) = owner_and_waiter(&place.first(leader)).await;
    let mut bystander = Host::start(&place.first((leader + 1) % 3)).await;
    etcd.kill(leader);
    all_goes_on(a, b, epoch).await;
    bystander.settle().await;
    assert_eq!(bystander.count(lease_lost), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_freezes_and_wakes_again_does_no_harm() {
    let mut etcd = Etcd::start(&EtcdConfig::cluster()).await;
    let leader = etcd.leader().await;
    let place = Place::on(&etcd).long_leases().first(leader);
    let (mut a, b, epoch) = owner_and_waiter(&place).await;
    etcd.freeze(leader).await;
    assert_ne!(etcd.leader().await, leader);
    let frozen = a.take(&key("t/while-frozen"), DELAY).await;
    // Everything that was sent to it while it was frozen is now read by one who leads no more.
    etcd.thaw(leader);
    etcd.ready().await;
    assert!(a.take(&key("t/while-frozen"), DELAY).await.epoch > frozen.epoch);
    all_goes_on(a, b, epoch).await;
}

/// The lease of a host that talks to nobody but a frozen leader runs out for all to see, and not sooner for others than
/// for the host itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_talks_to_a_frozen_leader_only_believes_no_longer_than_others_wait() {
    let mut etcd = Etcd::start(&EtcdConfig::cluster()).await;
    let leader = etcd.leader().await;
    let place = Place::on(&etcd);
    let address = etcd.url(etcd.client_address(leader));
    let mut a = Host::start(&place.with(|config| config.endpoints = vec![address])).await;
    let mut b = Host::start(&place.first((leader + 1) % 3)).await;
    a.take(&key("t/owned"), DELAY).await;
    b.queue_for(&key("t/owned"), DELAY).await;
    etcd.freeze(leader).await;
    let gained = b.gained(&key("t/owned")).await;
    // What came meanwhile counts too.
    a.drain();
    let from = gained.quarantined_until.max(gained.seen);
    assert!(gained.seen >= a.leased_until && from >= a.leased_until + DELAY, "{gained:?} is too early");
    etcd.thaw(leader);
    a.lease_lost().await;
    a.renewed().await;
    a.queue_for(&key("t/owned"), DELAY).await;
    assert!(b.take(&key("t/owned"), DELAY).await.epoch > gained.epoch);
}

/// The watch goes on at another member: contention is still heard of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watch_survives_the_member_that_served_it() {
    let mut etcd = Etcd::start(&EtcdConfig::cluster()).await;
    let follower = etcd.follower().await;
    let place = Place::on(&etcd).long_leases().first(follower);
    let mut a = Host::start(&place).await;
    let mut b = Host::start(&place.first(1)).await;
    for name in ["t/1", "t/2", "t/3"] {
        a.take(&key(name), DELAY).await;
    }
    etcd.kill(follower);
    // At once: what is written before the new watch stands must not be missed.
    b.queue_for(&key("t/1"), DELAY).await;
    a.contended(&key("t/1")).await;
    a.settle().await;
    let asked = clock::now();
    b.queue_for(&key("t/2"), DELAY).await;
    a.contended(&key("t/2")).await;
    assert!(clock::now().saturating_since(asked) < LONG_TTL, "the owner must hear of it soon");
    etcd.restart(follower);
    etcd.ready().await;
    b.queue_for(&key("t/3"), DELAY).await;
    a.contended(&key("t/3")).await;
    a.settle().await;
    assert_eq!(a.count(|event| matches!(event, Event::Contended { .. })), 0, "once per ownership");
    assert_eq!(a.count(lease_lost) + b.count(lease_lost), 0);
}

/// Without a majority nothing is granted and no lease renewed; with one, all goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_majority_stops_grants_until_it_is_back() {
    let mut etcd = Etcd::start(&EtcdConfig::cluster()).await;
    let place = Place::on(&etcd);
    let (mut a, mut b, epoch) = owner_and_waiter(&place).await;
    a.report_failures();
    let others = [(etcd.leader().await + 1) % 3, (etcd.leader().await + 2) % 3];
    others.into_iter().for_each(|member| etcd.kill(member));
    a.claim(&key("t/free"), DELAY);
    let error = a.failed(&key("t/free")).await;
    assert!(matches!(error, StoreError::Unavailable(_) | StoreError::Ambiguous(_)), "{error}");
    // What was under way when they died is over; from now on nothing can be renewed.
    tokio::time::sleep(place.lease_ttl()).await;
    a.drain();
    b.drain();
    let lease = a.leased_until;
    tokio::time::sleep(place.lease_ttl() * 2).await;
    assert_eq!(a.count(|event| matches!(event, Event::LeaseRenewed { .. })), 0, "no majority, no lease");
    assert!(clock::now() > lease, "what it had is over");
    assert!(!b.has_gained(&key("t/owned")));
    others.into_iter().for_each(|member| etcd.restart(member));
    etcd.ready().await;
    // Whether its lease lives on is etcd's to say; it may have run out.
    a.renewed().await;
    b.renewed().await;
    a.give_up(&key("t/owned"));
    if b.count(lease_lost) > 0 {
        b.claim(&key("t/owned"), DELAY);
    }
    assert!(b.gained(&key("t/owned")).await.epoch > epoch);
    while {
        a.claim(&key("t/free"), DELAY);
        let answer = |event: &Event| matches!(event, Event::Gained { .. } | Event::Failed { .. });
        !matches!(a.wait("an answer", answer).await, Event::Gained { .. })
    } {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_replaced_under_the_hosts() {
    let mut etcd = Etcd::start(&EtcdConfig::cluster()).await;
    let leader = etcd.leader().await;
    let place = Place::on(&etcd).long_leases().first(leader);
    let (a, b, epoch) = owner_and_waiter(&place).await;
    etcd.replace(leader).await;
    all_goes_on(a, b, epoch).await;
}

/// All hosts lose their connections at once, and the single member forgets nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_only_member_is_survived() {
    let mut etcd = Etcd::start(&EtcdConfig::default()).await;
    let (a, b, epoch) = owner_and_waiter(&Place::on(&etcd).long_leases()).await;
    etcd.restart(0);
    all_goes_on(a, b, epoch).await;
}

/// etcd takes no writes any more once it is full, beats included.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_stops_grants_until_there_is_room() {
    let config = EtcdConfig { more: vec!["--quota-backend-bytes=1048576".into()], ..EtcdConfig::default() };
    let etcd = Etcd::start(&config).await;
    let place = Place::on(&etcd);
    let mut a = Host::start(&place).await;
    let epoch = a.take(&key("t/owned"), DELAY).await.epoch;
    let filler = "x".repeat(100_000);
    until("etcd to be full", PATIENCE, async || {
        let _ = etcd.try_ctl(&["put", "filler", &filler]).await;
        etcd.ctl(&["alarm", "list"]).await.contains("NOSPACE").then_some(())
    })
    .await;
    // A beat that was under way may have landed.
    tokio::time::sleep(place.lease_ttl()).await;
    a.drain();
    tokio::time::sleep(place.lease_ttl()).await;
    assert_eq!(a.count(|event| matches!(event, Event::LeaseRenewed { .. })), 0, "a beat is a write");
    // As etcd's manual says.
    etcd.compact().await;
    etcd.ctl(&["defrag"]).await;
    etcd.ctl(&["alarm", "disarm"]).await;
    a.renewed().await;
    a.claim(&key("t/owned"), DELAY);
    assert!(a.gained(&key("t/owned")).await.epoch > epoch);
}

/// History is thrown away as soon as it is made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_under_load_is_not_noticed() {
    let etcd = Etcd::start(&EtcdConfig::default()).await;
    let place = Place::on(&etcd).long_leases();
    let compactions = std::cell::Cell::new(0);
    let load = async {
        ownership::two_hosts_race(&place).await;
        ownership::many_keys_change_hands(&place.with(|config| config.prefix = "other/".into())).await;
    };
    let compact = async {
        loop {
            // Refused when nothing happened since the last one.
            let revision = etcd.revision().await.to_string();
            compactions.set(compactions.get() + usize::from(etcd.try_ctl(&["compaction", &revision]).await.is_ok()));
        }
    };
    tokio::select! {
        () = load => {}
        () = compact => {}
    }
    assert!(compactions.get() >= 5, "only {} compactions", compactions.get());
}
