//! Cases in which nobody dies: claims, queues, hand-over.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use turnstile_core::{Epoch, LockKey};
use turnstile_host::clock;
use turnstile_host::store::{Event, Operation};

use super::Harness;
use super::hosts::{Host, key};

const DELAY: Duration = Duration::from_millis(200);

pub async fn a_free_key_is_gained_at_once(harness: &impl Harness) {
    let mut a = Host::start(harness).await;
    let account = key("t/account:1");
    let claim = a.claim(&account, DELAY);
    let gained = a.gained(&account).await;
    assert_eq!(gained.claim, claim);
    assert!(gained.epoch > Epoch(0));
    assert!(gained.lock_delay >= DELAY);
    assert!(gained.quarantined_until <= gained.seen, "there was no predecessor to wait out");
}

pub async fn the_lease_is_renewed_all_the_time(harness: &impl Harness) {
    let mut a = Host::start(harness).await;
    let end = clock::now() + harness.lease_ttl() * 4;
    while clock::now() < end {
        let before = a.leased_until;
        let until = a.renewed().await;
        assert!(until > before);
        assert!(until < clock::now() + harness.lease_ttl(), "a lease must not be promised beyond its TTL");
    }
    assert_eq!(a.count(|event| *event == Event::LeaseLost), 0);
}

pub async fn hosts_get_a_key_in_the_order_of_their_claims(harness: &impl Harness) {
    let account = key("t/account:1");
    let mut owner = Host::start(harness).await;
    let mut epoch = owner.take(&account, DELAY).await.epoch;
    let mut waiting = VecDeque::new();
    for _ in 0..3 {
        let mut host = Host::start(harness).await;
        host.queue_for(&account, DELAY).await;
        waiting.push_back(host);
    }
    for _ in 0..6 {
        owner.contended(&account).await;
        owner.give_up(&account);
        let mut next = waiting.pop_front().unwrap();
        let gained = next.gained(&account).await;
        assert!(gained.epoch > epoch, "epochs grow from owner to owner");
        assert!(gained.quarantined_until <= gained.seen, "a yielded key has no quarantine");
        epoch = gained.epoch;
        for host in &mut waiting {
            assert!(!host.has_gained(&account), "one owner at a time, first come, first served");
        }
        owner.queue_for(&account, DELAY).await;
        waiting.push_back(std::mem::replace(&mut owner, next));
    }
}

pub async fn a_live_owner_keeps_its_key(harness: &impl Harness) {
    let (mut a, mut b) = (Host::start(harness).await, Host::start(harness).await);
    let account = key("t/account:1");
    a.take(&account, DELAY).await;
    b.queue_for(&account, DELAY).await;
    let end = clock::now() + harness.lease_ttl() * 3;
    while clock::now() < end {
        a.renewed().await;
        b.renewed().await;
    }
    assert!(!b.has_gained(&account));
    assert_eq!(a.count(|event| *event == Event::LeaseLost), 0);
    a.give_up(&account);
    b.gained(&account).await;
}

pub async fn contention_is_reported_once_per_ownership_and_soon(harness: &impl Harness) {
    let (mut a, mut b, mut c) = (Host::start(harness).await, Host::start(harness).await, Host::start(harness).await);
    let account = key("t/account:1");
    a.take(&account, DELAY).await;
    let asked = clock::now();
    b.claim(&account, DELAY);
    a.contended(&account).await;
    // 50 ms are meant; a busy machine gets more, but less than a lease.
    assert!(clock::now().saturating_since(asked) < harness.lease_ttl(), "the owner must hear of it soon");
    c.queue_for(&account, DELAY).await;
    a.settle().await;
    assert_eq!(a.count(|event| matches!(event, Event::Contended { .. })), 0, "once per ownership");
    a.give_up(&account);
    b.gained(&account).await;
    b.contended(&account).await;
}

pub async fn contention_is_reported_again_after_a_further_claim(harness: &impl Harness) {
    let (mut a, mut b) = (Host::start(harness).await, Host::start(harness).await);
    let account = key("t/account:1");
    a.take(&account, DELAY).await;
    b.queue_for(&account, DELAY).await;
    a.contended(&account).await;
    // As after a yield that was decided on and not submitted: its host knows nothing of the rival any more.
    let claim = a.claim(&account, DELAY);
    assert_eq!(a.gained(&account).await.claim, claim);
    a.contended(&account).await;
    a.settle().await;
    assert_eq!(a.count(|event| matches!(event, Event::Contended { .. })), 0, "once per answer");
    a.give_up(&account);
    b.gained(&account).await;
}

pub async fn a_claim_of_an_owned_key_raises_lock_delay_and_epoch(harness: &impl Harness) {
    let mut a = Host::start(harness).await;
    let account = key("t/account:1");
    let first = a.take(&account, DELAY).await;
    let raised = a.take(&account, DELAY * 3).await;
    assert_eq!(raised.lock_delay, DELAY * 3);
    assert!(raised.epoch > first.epoch, "whoever claims again may have forgotten its tokens");
    let lower = a.take(&account, Duration::ZERO).await;
    assert_eq!(lower.lock_delay, DELAY * 3, "a promise once made stays");
    assert!(lower.epoch > raised.epoch, "also if nothing else changes");
    a.claim_as(&account, DELAY, true);
    let fresh = a.gained(&account).await;
    assert!(fresh.epoch > lower.epoch);
    assert_eq!(fresh.lock_delay, DELAY * 3);
    assert!(fresh.quarantined_until <= fresh.seen);
}

pub async fn a_withdrawn_claim_leaves_nothing(harness: &impl Harness) {
    let (mut a, mut b, mut c) = (Host::start(harness).await, Host::start(harness).await, Host::start(harness).await);
    let account = key("t/account:1");
    a.take(&account, DELAY).await;
    b.queue_for(&account, DELAY * 5).await;
    b.give_up(&account);
    b.settle().await;
    a.give_up(&account);
    let gained = c.take(&account, DELAY).await;
    assert_eq!(gained.lock_delay, DELAY, "what a withdrawn claim wanted remembered is forgotten");
    c.settle().await;
    assert_eq!(c.count(|event| matches!(event, Event::Contended { .. })), 0);
    assert!(!b.has_gained(&account));
}

pub async fn a_claim_repeated_in_the_queue_keeps_its_place(harness: &impl Harness) {
    let (mut a, mut b, mut c) = (Host::start(harness).await, Host::start(harness).await, Host::start(harness).await);
    let account = key("t/account:1");
    a.take(&account, DELAY).await;
    b.queue_for(&account, DELAY).await;
    c.queue_for(&account, DELAY).await;
    b.queue_for(&account, DELAY * 4).await;
    a.give_up(&account);
    let gained = b.gained(&account).await;
    assert_eq!(gained.lock_delay, DELAY * 4, "the larger of the two is remembered");
    assert!(!c.has_gained(&account));
    b.give_up(&account);
    assert_eq!(c.gained(&account).await.lock_delay, DELAY);
}

pub async fn operations_on_one_key_keep_their_order(harness: &impl Harness) {
    let (mut a, mut b) = (Host::start(harness).await, Host::start(harness).await);
    let account = key("t/account:1");
    let mut epoch = Epoch(0);
    for _ in 0..20 {
        // Answered or not: the yield may be there before it is carried out.
        let first = a.claim(&account, DELAY);
        a.give_up(&account);
        let last = a.claim(&account, DELAY);
        let mut gained = a.gained(&account).await;
        if gained.claim == first {
            assert!(epoch < gained.epoch, "a key that was given up has a new epoch");
            epoch = gained.epoch;
            gained = a.gained(&account).await;
        }
        assert!(epoch < gained.epoch, "a key that was given up has a new epoch");
        assert_eq!(gained.claim, last);
        epoch = gained.epoch;
        a.give_up(&account);
    }
    b.take(&account, DELAY).await;
}

pub async fn many_keys_change_hands(harness: &impl Harness) {
    let (mut a, mut b) = (Host::start(harness).await, Host::start(harness).await);
    let keys: Vec<LockKey> = (0..700).map(|n| key(&format!("t/account:{n}"))).collect();
    let mut epochs = HashMap::new();
    for key in &keys {
        a.claim(key, DELAY);
    }
    for key in &keys {
        epochs.insert(key, a.gained(key).await.epoch);
        b.claim(key, DELAY);
    }
    for key in &keys {
        a.contended(key).await;
        a.give_up(key);
    }
    for key in &keys {
        assert!(b.gained(key).await.epoch > epochs[key]);
    }
}

/// Who owns each key, and the last epoch of it.
type Owners = Arc<Mutex<HashMap<LockKey, (Option<usize>, Epoch)>>>;

/// Two hosts take, hold and give up the same few keys as fast as they can; each ownership is checked against a table in
/// memory that both share.
pub async fn two_hosts_race(harness: &impl Harness) {
    const ROUNDS: usize = 150;
    let keys: Arc<Vec<LockKey>> = Arc::new((0..10).map(|n| key(&format!("t/hot:{n}"))).collect());
    let owners: Owners = Arc::default();
    let mut races = Vec::new();
    for me in 0..2 {
        let (mut host, keys, owners) = (Host::start(harness).await, Arc::clone(&keys), Arc::clone(&owners));
        races.push(tokio::spawn(async move {
            let mut rounds_left: HashMap<&LockKey, usize> = keys.iter().map(|key| (key, ROUNDS)).collect();
            for key in keys.iter() {
                host.claim(key, DELAY);
            }
            while !rounds_left.is_empty() {
                let event = host.wait("Gained", |event| matches!(event, Event::Gained { .. })).await;
                let Event::Gained { key, epoch, .. } = event else { unreachable!() };
                {
                    let mut owners = owners.lock().unwrap();
                    let entry = owners.entry(key.clone()).or_insert((None, Epoch(0)));
                    assert_eq!(entry.0, None, "{key} has two owners");
                    assert!(epoch > entry.1, "the epoch of {key} does not grow");
                    *entry = (Some(me), epoch);
                }
                tokio::task::yield_now().await;
                owners.lock().unwrap().get_mut(&key).unwrap().0 = None;
                host.submit(Operation::Yield { key: key.clone() });
                let left = rounds_left.get_mut(&key).unwrap();
                *left -= 1;
                if *left == 0 {
                    rounds_left.remove(&key);
                } else {
                    host.claim(&key, DELAY);
                }
            }
            assert_eq!(host.count(|event| matches!(event, Event::Failed { .. } | Event::LeaseLost)), 0);
            host
        }));
    }
    for race in races {
        race.await.unwrap();
    }
}

pub async fn an_ended_lease_frees_everything_at_once(harness: &impl Harness) {
    let (mut a, mut b, mut c) = (Host::start(harness).await, Host::start(harness).await, Host::start(harness).await);
    let keys: Vec<LockKey> = (0..400).map(|n| key(&format!("t/account:{n}"))).collect();
    for key in &keys {
        a.claim(key, DELAY * 20);
    }
    for key in &keys {
        a.gained(key).await;
    }
    b.queue_for(&keys[0], DELAY).await;
    let other = key("t/other");
    b.take(&other, DELAY).await;
    a.queue_for(&other, DELAY).await;
    a.end_lease().await;
    let handed = b.gained(&keys[0]).await;
    assert!(handed.quarantined_until <= handed.seen);
    for key in &keys[1..] {
        c.claim(key, DELAY);
    }
    for key in &keys[1..] {
        let gained = c.gained(key).await;
        assert!(gained.quarantined_until <= gained.seen, "a host that left in order is not waited out");
    }
    assert_eq!(c.count(|event| matches!(event, Event::Queued { .. })), 0, "nothing stood in the way");
    b.give_up(&other);
    c.take(&other, DELAY).await;
}
