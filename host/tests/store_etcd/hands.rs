//! What people do to the cluster by hand: leases revoked, records deleted, changed and planted.

use std::time::Duration;

use serde_json::Value;
use turnstile_core::Epoch;
use turnstile_host::store::{Event, StoreError};
use turnstile_tests::etcd::{Etcd, EtcdConfig, KeyValue};
use turnstile_tests::wait::{PATIENCE, until};

use crate::conformance::hosts::{Host, key};
use crate::{Place, believed_until};

const DELAY: Duration = Duration::from_millis(600);

async fn start() -> (Etcd, Place) {
    let etcd = Etcd::start(&EtcdConfig::default()).await;
    let place = Place::on(&etcd);
    (etcd, place)
}

/// The keys of all hosts, the oldest first.
async fn hosts(etcd: &Etcd, place: &Place) -> Vec<KeyValue> {
    let mut hosts = etcd.keys(&place.named("hosts/")).await;
    hosts.sort_by_key(|host| host.create_revision);
    hosts
}

async fn record(etcd: &Etcd, place: &Place, name: &str) -> Option<KeyValue> {
    etcd.keys(&place.named(&format!("keys/{name}"))).await.into_iter().next()
}

/// `value` as if `host` owned it.
fn owned_by(value: &str, host: &KeyValue) -> String {
    let mut record: Value = serde_json::from_str(value).unwrap();
    record["host"] = host.key.rsplit('/').next().unwrap().into();
    record.to_string()
}

/// The host knows at once, and whoever comes next waits for what it promised.
async fn its_lease_ends(end: impl AsyncFn(&Etcd, &KeyValue)) {
    let (etcd, place) = start().await;
    let (mut a, mut b) = (Host::start(&place).await, Host::start(&place).await);
    let account = key("t/account");
    let epoch = a.take(&account, DELAY).await.epoch;
    b.queue_for(&account, Duration::ZERO).await;
    let old = hosts(&etcd, &place).await.remove(0);
    a.renewed().await;
    end(&etcd, &old).await;
    a.lease_lost().await;
    let lease = believed_until(&a);
    let gained = b.gained(&account).await;
    assert!(gained.epoch > epoch);
    let (from, until) = (gained.quarantined_until.max(gained.seen), lease + DELAY);
    assert!(from >= until, "grants from {from:?}, not {until:?}");
    // It goes on as another incarnation, behind the new owner.
    a.renewed().await;
    assert!(hosts(&etcd, &place).await.iter().all(|host| host.key != old.key), "the name does not come again");
    a.queue_for(&account, DELAY).await;
    b.contended(&account).await;
    b.give_up(&account);
    assert!(a.gained(&account).await.epoch > gained.epoch);
    assert_eq!(b.count(|event| *event == Event::LeaseLost), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_revoked_is_lost_and_waited_out() {
    its_lease_ends(async |etcd, host| etcd.revoke(host.lease).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hosts_key_that_is_deleted_is_a_lost_lease() {
    its_lease_ends(async |etcd, host| etcd.delete(&host.key).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_was_deleted_is_reported() {
    let (etcd, place) = start().await;
    let mut a = Host::start(&place).await;
    let epoch = a.take(&key("t/a"), DELAY).await.epoch;
    a.take(&key("t/b"), DELAY).await;
    etcd.delete(&place.named("keys/t/a")).await;
    a.lost(&key("t/a")).await;
    assert!(a.take(&key("t/a"), DELAY).await.epoch > epoch);
    a.settle().await;
    assert_eq!(a.count(|event| matches!(event, Event::Lost { .. } | Event::LeaseLost)), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_was_given_to_another_is_reported() {
    let (etcd, place) = start().await;
    let mut a = Host::start(&place).await;
    let mut b = Host::start(&place).await;
    let owner = hosts(&etcd, &place).await.remove(1);
    let epoch = a.take(&key("t/a"), DELAY).await.epoch;
    let value = record(&etcd, &place, "t/a").await.unwrap().value;
    etcd.put(&place.named("keys/t/a"), &owned_by(&value, &owner)).await;
    a.lost(&key("t/a")).await;
    // What b does not know that it owns, it gives up or claims anew.
    a.claim(&key("t/a"), DELAY);
    assert!(a.gained(&key("t/a")).await.epoch > epoch);
    b.settle().await;
    assert_eq!(b.count(|event| !matches!(event, Event::LeaseRenewed { .. })), 0, "it never asked for it");
}

/// A claim of a key that is owned already finds out at the latest: the loss is told before the claim is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_is_reported_before_a_claim_is_answered() {
    let (etcd, place) = start().await;
    let mut a = Host::start(&place).await;
    let lost = |event: &Event| matches!(event, Event::Lost { key: lost } if *lost == key("t/a"));
    let epoch = a.take(&key("t/a"), DELAY).await.epoch;
    etcd.delete(&place.named("keys/t/a")).await;
    a.claim(&key("t/a"), DELAY);
    let gained = a.gained(&key("t/a")).await;
    assert!(gained.epoch > epoch);
    // It may have been found before the claim came; the other order is never right.
    assert_eq!(a.count(lost), 1, "reported once");
    let order = [a.count_before_last_wait(lost), a.count(lost)];
    assert_eq!(order, [1, 1], "reported before the answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_ours_is_left_alone() {
    let (etcd, place) = start().await;
    let mut a = Host::start(&place).await;
    a.report_failures();
    etcd.put(&place.named("keys/t/a"), "not a record").await;
    a.claim(&key("t/a"), DELAY);
    let error = a.failed(&key("t/a")).await;
    assert!(matches!(error, StoreError::Rejected(_)), "{error}");
    assert_eq!(record(&etcd, &place, "t/a").await.unwrap().value, "not a record");
    a.take(&key("t/b"), DELAY).await;
    a.settle().await;
    assert_eq!(a.count(|event| *event == Event::LeaseLost), 0);
    etcd.delete(&place.named("keys/t/a")).await;
    a.take(&key("t/a"), DELAY).await;
}

/// A write that was believed failed but landed: a record of this incarnation that its process does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ghost_is_found_and_given_up_or_claimed_anew() {
    let (etcd, place) = start().await;
    let (mut a, mut b) = (Host::start(&place).await, Host::start(&place).await);
    a.take(&key("t/known"), Duration::ZERO).await;
    let value = record(&etcd, &place, "t/known").await.unwrap().value;
    let plant = async |name: &str| {
        etcd.put(&place.named(&format!("keys/{name}")), &value).await;
        Epoch(record(&etcd, &place, name).await.unwrap().mod_revision)
    };
    // Nobody at its owner wants it, so it is given up and free for others.
    let ghost = plant("t/ghost").await;
    b.claim(&key("t/ghost"), Duration::ZERO);
    let gained = b.gained(&key("t/ghost")).await;
    assert!(gained.epoch > ghost && gained.quarantined_until <= gained.seen);
    assert_eq!(a.count(|event| matches!(event, Event::Gained { .. } | Event::Lost { .. })), 0);
    // Claimed by its owner: under a fresh epoch, since nobody knows what was granted under the old one.
    let ghost = plant("t/other").await;
    assert!(a.take(&key("t/other"), Duration::ZERO).await.epoch > ghost);
    // One that nobody ever asks for goes too.
    plant("t/forgotten").await;
    until("the forgotten ghost to go", PATIENCE, async || {
        record(&etcd, &place, "t/forgotten").await.is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_in_the_queue_that_was_deleted_is_taken_anew() {
    let (etcd, place) = start().await;
    let (mut a, mut b) = (Host::start(&place).await, Host::start(&place).await);
    let account = key("t/account");
    a.take(&account, DELAY).await;
    b.queue_for(&account, DELAY).await;
    let queue = etcd.keys(&place.named("queue/")).await;
    assert_eq!(queue.len(), 1);
    etcd.delete(&queue[0].key).await;
    a.give_up(&account);
    b.gained(&account).await;
    until("an empty queue", PATIENCE, async || etcd.keys(&place.named("queue/")).await.is_empty().then_some(())).await;
}

/// What tells of no host and no lock is all that is left when everybody has gone in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_leaves_in_order_leaves_nothing() {
    let (etcd, place) = start().await;
    let (mut a, mut b) = (Host::start(&place).await, Host::start(&place).await);
    for number in 0..50 {
        a.take(&key(&format!("t/{number}")), DELAY).await;
    }
    b.queue_for(&key("t/1"), DELAY).await;
    a.contended(&key("t/1")).await;
    b.take(&key("t/b"), DELAY).await;
    a.queue_for(&key("t/b"), DELAY).await;
    a.end_lease().await;
    b.gained(&key("t/1")).await;
    b.end_lease().await;
    let left: Vec<String> = etcd.keys(&place.config.prefix).await.into_iter().map(|left| left.key).collect();
    assert_eq!(left, [place.named("meta")]);
}

/// Members of one place that were not told the same: all of them use the higher one from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_disagree_about_the_epoch_base_use_the_highest() {
    let (_etcd, place) = start().await;
    let account = key("t/account");
    let (mut a, mut last) = (Host::start(&place).await, Epoch(0));
    let mut higher = |epoch: Epoch, least: u64| {
        assert!(epoch > last && epoch > Epoch(least), "{epoch:?} after {last:?}");
        last = epoch;
    };
    higher(a.take(&account, DELAY).await.epoch, 0);
    let mut b = Host::start(&place.with(|config| config.epoch_base = 50_000)).await;
    b.queue_for(&account, DELAY).await;
    a.give_up(&account);
    higher(b.gained(&account).await.epoch, 50_000);
    // Also what was there before, and whoever comes later with less.
    a.queue_for(&account, DELAY).await;
    b.give_up(&account);
    higher(a.gained(&account).await.epoch, 50_000);
    higher(a.take(&account, DELAY).await.epoch, 50_000);
    let mut c = Host::start(&place.with(|config| config.epoch_base = 7)).await;
    c.queue_for(&account, DELAY).await;
    a.give_up(&account);
    higher(c.gained(&account).await.epoch, 50_000);
    // A key that was owned all the time while the base rose.
    c.claim_as(&account, DELAY, true);
    higher(c.gained(&account).await.epoch, 50_000);
    for host in [&mut a, &mut b, &mut c] {
        assert_eq!(host.count(|event| matches!(event, Event::LeaseLost | Event::Lost { .. })), 0);
    }
}
