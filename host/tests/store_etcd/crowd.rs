//! Many keys: what they cost while their owner lives, and when it dies.

use std::time::Duration;

use turnstile_core::LockKey;
use turnstile_host::clock;
use turnstile_host::store::Event;
use turnstile_tests::etcd::{Etcd, EtcdConfig};
use turnstile_tests::wait::{PATIENCE, until};

use crate::conformance::Harness;
use crate::conformance::hosts::{Host, key};
use crate::{LEASE_TTL, Place};

const DELAY: Duration = Duration::from_millis(300);

fn keys(count: usize) -> Vec<LockKey> {
    (0..count).map(|number| key(&format!("t/account:{number}"))).collect()
}

async fn take_all(host: &mut Host, keys: &[LockKey]) {
    for key in keys {
        host.claim(key, DELAY);
    }
    for key in keys {
        host.gained(key).await;
    }
}

/// All that clients asked etcd for so far.
async fn requests(etcd: &Etcd) -> u64 {
    let mut sum = 0;
    for method in ["LeaseKeepAlive", "LeaseGrant", "Txn", "Range", "Put", "Watch"] {
        sum += etcd.requests(method).await;
    }
    sum
}

/// What a host asks etcd for in `count` renewals of its lease.
async fn cost_of_renewals(etcd: &Etcd, host: &mut Host, count: u64) -> u64 {
    host.drain();
    let before = requests(etcd).await;
    for _ in 0..count {
        host.renewed().await;
    }
    requests(etcd).await - before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_keys_are_kept_as_cheaply_as_one() {
    const RENEWALS: u64 = 15;
    let etcd = Etcd::start(&EtcdConfig::default()).await;
    let mut a = Host::start(&Place::on(&etcd)).await;
    take_all(&mut a, &keys(1)).await;
    let one = cost_of_renewals(&etcd, &mut a, RENEWALS).await;
    take_all(&mut a, &keys(2_000)).await;
    let many = cost_of_renewals(&etcd, &mut a, RENEWALS).await;
    // A renewal is a beat and a keepalive; a few more requests may fall into the time.
    assert!(one <= RENEWALS * 4, "{one} requests in {RENEWALS} renewals for one key");
    assert!(many <= one + RENEWALS, "{many} requests for 2,000 keys, {one} for one");
}

/// Hundreds of keys of a dead host go to those who wait for them, with fewer requests than keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_an_owner_of_many_keys_is_no_storm() {
    const KEYS: usize = 800;
    let etcd = Etcd::start(&EtcdConfig::default()).await;
    let place = Place::on(&etcd);
    let (mut a, mut b, mut c) = (Host::start(&place).await, Host::start(&place).await, Host::start(&place).await);
    let keys = keys(KEYS);
    take_all(&mut a, &keys).await;
    let (bs, cs) = keys.split_at(KEYS / 2);
    for key in bs {
        b.claim(key, DELAY);
    }
    for key in cs {
        c.claim(key, DELAY);
    }
    for (host, keys) in [(&mut b, bs), (&mut c, cs)] {
        for key in keys {
            host.wait("Queued", |event| matches!(event, Event::Queued { key: k, .. } if k == key)).await;
        }
    }
    let lease = a.kill().await;
    let (death, before) = (clock::now(), requests(&etcd).await);
    for (host, keys) in [(&mut b, bs), (&mut c, cs)] {
        for key in keys {
            let gained = host.gained(key).await;
            let from = gained.quarantined_until.max(gained.seen);
            assert!(from >= lease + DELAY, "{gained:?} is too early");
        }
    }
    let (took, cost) = (clock::now().saturating_since(death), requests(&etcd).await - before);
    println!("{KEYS} keys of a dead host were taken over after {took:?} with {cost} requests");
    assert!(took <= place.lease_ttl() + place.expiry_slack(), "it took {took:?}");
    assert!(cost <= KEYS as u64 / 2, "{cost} requests for {KEYS} keys");
    assert_eq!(b.count(|event| *event == Event::LeaseLost) + c.count(|event| *event == Event::LeaseLost), 0);
}

/// What the dead leave goes when nobody needs to wait for it any more, and not before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_the_dead_go_when_their_lock_delay_has_passed() {
    let etcd = Etcd::start(&EtcdConfig::default()).await;
    let place = Place::on(&etcd);
    let (mut a, mut b) = (Host::start(&place).await, Host::start(&place).await);
    let long_delay = LEASE_TTL * 6;
    take_all(&mut a, &keys(600)).await;
    a.take(&key("t/long"), long_delay).await;
    b.take(&key("t/of-b"), DELAY).await;
    a.queue_for(&key("t/of-b"), DELAY).await;
    let lease = a.kill().await;
    let left = async || -> Vec<String> {
        etcd.keys(&place.named("keys/")).await.into_iter().map(|record| record.key).collect()
    };
    let (of_b, long) = (place.named("keys/t/of-b"), place.named("keys/t/long"));
    until("the short ones to go", PATIENCE, async || (left().await.len() <= 2).then_some(())).await;
    if clock::now() < lease + long_delay {
        assert!(left().await.contains(&long), "its lock delay is not over");
    }
    assert!(clock::now() >= lease + DELAY);
    until("the long one to go", PATIENCE, async || (left().await == [of_b.clone()]).then_some(())).await;
    assert!(clock::now() >= lease + long_delay, "somebody might have been let in too early");
    let others = ["hosts/", "queue/", "wake/"];
    until("places and names of the dead to go", PATIENCE, async || {
        let mut count = 0;
        for kind in others {
            count += etcd.keys(&place.named(kind)).await.len();
        }
        // The one who lives, and what woke it, perhaps.
        (count <= 2).then_some(())
    })
    .await;
    // Clean now: it can be had at once.
    let gained = b.take(&key("t/long"), DELAY).await;
    assert!(gained.quarantined_until <= gained.seen);
}
