//! A network between a host and etcd that swallows answers, or everything: what may have landed is found out.

use std::time::Duration;

use turnstile_core::LockKey;
use turnstile_host::store::{Event, Operation, StoreError};
use turnstile_tests::etcd::{Etcd, EtcdConfig, KeyValue};
use turnstile_tests::link::Link;
use turnstile_tests::wait::{PATIENCE, until};

use crate::Place;
use crate::conformance::hosts::{Host, key};

const DELAY: Duration = Duration::from_millis(300);
/// Keys that take several requests.
const MANY: usize = 600;

/// An etcd, and the way of one host to it.
struct Scene {
    etcd: Etcd,
    /// For hosts with a good network.
    place: Place,
    link: Link,
    /// For the one behind the link.
    behind: Place,
}

impl Scene {
    async fn start() -> Self {
        let etcd = Etcd::start(&EtcdConfig::default()).await;
        let link = Link::to(etcd.client_address(0)).await;
        let place = Place::on(&etcd).long_leases();
        let behind = place.with(|config| config.endpoints = vec![etcd.url(link.address)]);
        Self { etcd, place, link, behind }
    }

    async fn record(&self, name: &str) -> Option<KeyValue> {
        self.etcd.keys(&self.place.named(&format!("keys/{name}"))).await.into_iter().next()
    }

    async fn until_record(&self, name: &str, is: impl Fn(Option<&KeyValue>) -> bool) {
        let what = format!("the record of {name} to change");
        until(&what, PATIENCE, async || is(self.record(name).await.as_ref()).then_some(())).await;
    }
}

fn lease_lost(event: &Event) -> bool {
    *event == Event::LeaseLost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_landed_unheard_is_found_by_the_next_one() {
    let scene = Scene::start().await;
    let (mut a, mut b) = (Host::start(&scene.behind).await, Host::start(&scene.place).await);
    let account = key("t/account");
    a.report_failures();
    scene.link.deafen();
    a.claim(&account, DELAY);
    scene.until_record("t/account", |record| record.is_some()).await;
    let landed = scene.record("t/account").await.unwrap();
    let error = a.failed(&account).await;
    assert!(matches!(error, StoreError::Ambiguous(_)), "{error}: it has landed");
    scene.link.cut_all().await;
    b.queue_for(&account, DELAY).await;
    scene.link.heal();
    a.renewed().await;
    let gained = loop {
        let claim = a.claim(&account, DELAY);
        let answer = |event: &Event| {
            matches!(event, Event::Gained { claim: c, .. } | Event::Failed { claim: c, .. }
                | Event::Queued { claim: c, .. } if *c == claim)
        };
        match a.wait("an answer", answer).await {
            Event::Gained { epoch, .. } => break epoch,
            Event::Failed { .. } => {}
            // It was given up when b asked for it, which nobody at a wanted any more.
            _ => {
                b.gained(&account).await;
                b.give_up(&account);
                break a.gained(&account).await.epoch;
            }
        }
    };
    assert!(gained.0 > landed.mod_revision, "nobody knows what was granted under the first one");
    assert_eq!(a.count(lease_lost), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_landed_unheard_and_is_wanted_no_more_is_undone() {
    let scene = Scene::start().await;
    let (mut a, mut b) = (Host::start(&scene.behind).await, Host::start(&scene.place).await);
    let (account, other) = (key("t/account"), key("t/other"));
    a.report_failures();
    scene.link.deafen();
    a.claim(&account, DELAY);
    a.claim(&other, DELAY);
    scene.until_record("t/account", |record| record.is_some()).await;
    a.failed(&account).await;
    a.failed(&other).await;
    scene.link.cut_all().await;
    a.give_up(&account);
    scene.link.heal();
    // The one that was withdrawn goes, and so does the one that was just not claimed again.
    b.claim(&account, DELAY);
    let gained = b.gained(&account).await;
    assert!(gained.quarantined_until <= gained.seen, "its owner lives");
    b.claim(&other, DELAY);
    b.gained(&other).await;
    assert_eq!(a.count(lease_lost), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_came_unheard_is_found() {
    let scene = Scene::start().await;
    let (mut a, mut b) = (Host::start(&scene.behind).await, Host::start(&scene.place).await);
    let mut c = Host::start(&scene.place).await;
    let account = key("t/account");
    b.take(&account, DELAY).await;
    a.queue_for(&account, DELAY).await;
    c.queue_for(&account, DELAY).await;
    scene.link.deafen();
    b.give_up(&account);
    b.settle().await;
    scene.link.cut_all().await;
    scene.link.heal();
    let gained = a.gained(&account).await;
    assert!(gained.quarantined_until <= gained.seen);
    a.contended(&account).await;
    assert!(!c.has_gained(&account), "first come, first served");
    a.give_up(&account);
    c.gained(&account).await;
    assert_eq!(a.count(lease_lost), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_yield_that_landed_unheard_takes_nothing_from_the_next_owner() {
    let scene = Scene::start().await;
    let (mut a, mut b) = (Host::start(&scene.behind).await, Host::start(&scene.place).await);
    let account = key("t/account");
    let epoch = a.take(&account, DELAY).await.epoch;
    scene.link.deafen();
    a.give_up(&account);
    scene.until_record("t/account", |record| record.is_none()).await;
    assert!(b.take(&account, DELAY).await.epoch > epoch);
    scene.link.cut_all().await;
    scene.link.heal();
    a.settle().await;
    // It is b's, under the same revision, and a is one who waits like everybody.
    let before = scene.record("t/account").await.unwrap();
    a.queue_for(&account, DELAY).await;
    assert_eq!(scene.record("t/account").await.unwrap(), before);
    b.give_up(&account);
    a.gained(&account).await;
    assert_eq!(b.count(|event| matches!(event, Event::Lost { .. } | Event::LeaseLost)), 0);
    assert_eq!(a.count(lease_lost), 0);
}

/// Of many claims at once some are answered, some land unheard and some do not get through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_that_are_cut_in_the_middle_all_succeed_once() {
    let scene = Scene::start().await;
    let (mut a, mut b) = (Host::start(&scene.behind).await, Host::start(&scene.place).await);
    let keys: Vec<LockKey> = (0..MANY).map(|number| key(&format!("t/{number}"))).collect();
    for key in &keys {
        a.claim(key, DELAY);
    }
    a.gained(&keys[0]).await;
    scene.link.deafen();
    until("a claim to land unheard", PATIENCE, async || {
        let landed = scene.etcd.keys(&scene.place.named("keys/")).await.len();
        let heard = 1 + a.count(|event| matches!(event, Event::Gained { .. }));
        (landed > heard || landed == MANY).then_some(())
    })
    .await;
    scene.link.cut_all().await;
    scene.link.heal();
    for key in &keys[1..] {
        a.gained(key).await;
    }
    a.settle().await;
    assert_eq!(a.count(|event| matches!(event, Event::Gained { .. } | Event::Lost { .. } | Event::LeaseLost)), 0);
    for key in &keys {
        b.claim(key, DELAY);
    }
    for key in &keys {
        a.contended(key).await;
        a.give_up(key);
        b.gained(key).await;
    }
}

/// Of many keys that are handed over at once some are told to be, some unheard, and some follow later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hand_overs_that_are_cut_in_the_middle_all_succeed_once() {
    let scene = Scene::start().await;
    let (mut a, mut b) = (Host::start(&scene.behind).await, Host::start(&scene.place).await);
    let keys: Vec<LockKey> = (0..MANY).map(|number| key(&format!("t/{number}"))).collect();
    for key in &keys {
        a.claim(key, DELAY);
    }
    for key in &keys {
        a.gained(key).await;
        b.claim(key, DELAY);
    }
    for key in &keys {
        a.contended(key).await;
    }
    for key in &keys {
        a.give_up(key);
    }
    b.gained(&keys[0]).await;
    scene.link.deafen();
    b.settle().await;
    scene.link.cut_all().await;
    scene.link.heal();
    for key in &keys[1..] {
        let gained = b.gained(key).await;
        assert!(gained.quarantined_until <= gained.seen, "nobody died");
    }
    a.settle().await;
    b.settle().await;
    assert_eq!(b.count(|event| matches!(event, Event::Gained { .. } | Event::Lost { .. } | Event::LeaseLost)), 0);
    assert_eq!(a.count(lease_lost), 0);
    // They are b's, and nobody's after that.
    for key in &keys {
        b.give_up(key);
        a.take(key, DELAY).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_yield_that_did_not_get_through_is_made_up_for() {
    let scene = Scene::start().await;
    let (mut a, mut b) = (Host::start(&scene.behind).await, Host::start(&scene.place).await);
    let account = key("t/account");
    a.take(&account, DELAY).await;
    b.queue_for(&account, DELAY).await;
    scene.link.cut_all().await;
    a.give_up(&account);
    b.settle().await;
    assert!(!b.has_gained(&account));
    scene.link.heal();
    b.gained(&account).await;
    assert_eq!(a.count(lease_lost), 0);
}

/// What others want of a host while it is cut off, it hears when it is back, whatever was compacted meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_missed_is_heard_afterwards_despite_compaction() {
    let scene = Scene::start().await;
    let (mut a, mut b) = (Host::start(&scene.behind).await, Host::start(&scene.place).await);
    let account = key("t/account");
    a.take(&account, DELAY).await;
    scene.link.cut_all().await;
    b.queue_for(&account, DELAY).await;
    b.take(&key("t/other"), DELAY).await;
    scene.etcd.compact().await;
    scene.link.heal();
    a.contended(&account).await;
    a.settle().await;
    assert_eq!(a.count(|event| matches!(event, Event::Contended { .. })), 0, "once per ownership");
    assert_eq!(a.count(lease_lost), 0);
}

/// Cut off for longer than its lease, a host stops to believe before others stop to wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_cut_off_for_longer_than_its_lease_loses_it() {
    let scene = Scene::start().await;
    let mut a = Host::start(&scene.behind.with(|config| config.lease_ttl = crate::LEASE_TTL)).await;
    let mut b = Host::start(&scene.place).await;
    let account = key("t/account");
    let epoch = a.take(&account, DELAY).await.epoch;
    b.queue_for(&account, DELAY).await;
    a.renewed().await;
    // Half-open: nothing tells either side.
    scene.link.silence();
    let gained = b.gained(&account).await;
    a.drain();
    assert!(gained.epoch > epoch);
    let from = gained.quarantined_until.max(gained.seen);
    assert!(from >= a.leased_until + DELAY, "what the one cut off believes, and its lock delay");
    scene.link.heal();
    a.lease_lost().await;
    a.renewed().await;
    a.queue_for(&account, DELAY).await;
    b.contended(&account).await;
    b.give_up(&account);
    a.gained(&account).await;
}

/// The end of a lease waits for the network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_can_be_ended_while_the_network_is_away() {
    let scene = Scene::start().await;
    let (mut a, mut b) = (Host::start(&scene.behind).await, Host::start(&scene.place).await);
    a.take(&key("t/account"), DELAY * 20).await;
    scene.link.cut_all().await;
    a.submit(Operation::EndLease);
    a.claim(&key("t/late"), DELAY);
    // Not for long: the lease goes on meanwhile.
    b.renewed().await;
    scene.link.heal();
    a.wait("LeaseEnded", |event| *event == Event::LeaseEnded).await;
    let gained = b.take(&key("t/account"), DELAY).await;
    assert!(gained.quarantined_until <= gained.seen, "a host that left in order is not waited out");
}
