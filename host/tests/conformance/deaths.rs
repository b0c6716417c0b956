//! Cases in which a host dies, or looks dead: what it promised is waited out, and no longer than needed.

use std::time::Duration;

use turnstile_core::{Epoch, Instant};
use turnstile_host::clock;
use turnstile_host::store::Event;

use super::Harness;
use super::hosts::{Gained, Host, key};

const DELAY: Duration = Duration::from_millis(600);

/// Grants start only a lock delay after the end of what the dead host could believe. A store may pass the record on
/// before that, and say so.
fn assert_waited_out(gained: &Gained, lease: Instant, delay: Duration) {
    // A store that was slow to notice the death may find everything over.
    let (from, until) = (gained.quarantined_until.max(gained.seen), lease + delay);
    assert!(from >= until, "grants from {from:?}, not {until:?}");
    assert!(gained.lock_delay >= delay, "the lock delay is remembered as {:?}", gained.lock_delay);
}

/// I6: not sooner than needed, but not much later either.
fn assert_in_time(harness: &impl Harness, gained: &Gained, death: Instant, delay: Duration) {
    let took = gained.quarantined_until.saturating_since(death);
    let bound = harness.lease_ttl() + harness.expiry_slack() + delay;
    assert!(took <= bound, "the key was grantable {took:?} after the death, the bound is {bound:?}");
}

pub async fn a_dead_owner_is_waited_out(harness: &impl Harness) {
    let (mut a, mut b) = (Host::start(harness).await, Host::start(harness).await);
    owner_dies(harness, &mut b, {
        let account = key("t/account:1");
        let gained = a.take(&account, DELAY).await;
        (a, gained.epoch)
    })
    .await;
}

pub async fn a_killed_process_is_waited_out(harness: &impl Harness) {
    let (mut a, mut b) = (Host::spawn(harness).await, Host::start(harness).await);
    let gained = a.take(&key("t/account:1"), DELAY).await;
    owner_dies(harness, &mut b, (a, gained.epoch)).await;
}

async fn owner_dies(harness: &impl Harness, b: &mut Host, (a, epoch): (Host, Epoch)) {
    let (account, idle) = (key("t/account:1"), key("t/account:2"));
    b.queue_for(&account, Duration::ZERO).await;
    let lease = a.kill().await;
    let death = clock::now();
    // Its successor is nobody special: another incarnation, which waits in line.
    let mut successor = Host::start(harness).await;
    successor.queue_for(&account, Duration::ZERO).await;
    let gained = b.gained(&account).await;
    assert!(gained.epoch > epoch);
    assert_waited_out(&gained, lease, DELAY);
    assert_in_time(harness, &gained, death, DELAY);
    b.contended(&account).await;
    assert!(!successor.has_gained(&account));
    let free = successor.take(&idle, Duration::ZERO).await;
    assert!(free.quarantined_until <= free.seen, "only the dead host's own keys are waited out");
}

pub async fn the_largest_lock_delay_promised_outlives_its_host(harness: &impl Harness) {
    let (mut a, mut b) = (Host::start(harness).await, Host::start(harness).await);
    let account = key("t/account:1");
    for delay in [DELAY / 2, DELAY * 2, DELAY] {
        a.take(&account, delay).await;
    }
    let lease = a.kill().await;
    // Nobody was queued when it died, and nobody asks for a while.
    while clock::now() < lease + harness.lease_ttl() {
        b.renewed().await;
    }
    b.claim(&account, Duration::ZERO);
    let gained = b.gained(&account).await;
    assert_waited_out(&gained, lease, DELAY * 2);
}

pub async fn a_quarantine_outlives_a_withdrawn_claim(harness: &impl Harness) {
    let (mut a, mut b, mut c) = (Host::start(harness).await, Host::start(harness).await, Host::start(harness).await);
    let account = key("t/account:1");
    let long = DELAY * 3;
    a.take(&account, long).await;
    let lease = a.kill().await;
    b.claim(&account, Duration::ZERO);
    let first = b.gained(&account).await;
    assert_waited_out(&first, lease, long);
    b.give_up(&account);
    c.claim(&account, Duration::ZERO);
    let second = c.gained(&account).await;
    let from = second.seen.max(second.quarantined_until);
    assert!(from >= lease + long, "a claim withdrawn in the quarantine ended it");
    assert!(second.epoch > first.epoch);
    // Claimed again in the quarantine: it is still on, and under a fresh epoch.
    c.give_up(&account);
    let third = c.take(&account, Duration::ZERO).await;
    assert!(third.epoch > second.epoch);
}

pub async fn a_quarantine_outlives_a_second_death(harness: &impl Harness) {
    let (mut a, mut b, mut c) = (Host::start(harness).await, Host::start(harness).await, Host::start(harness).await);
    let account = key("t/account:1");
    let long = harness.lease_ttl() * 6;
    a.take(&account, long).await;
    let lease = a.kill().await;
    b.claim(&account, Duration::ZERO);
    b.gained(&account).await;
    b.kill().await;
    c.claim(&account, Duration::ZERO);
    let gained = c.gained(&account).await;
    assert_waited_out(&gained, lease, long);
}

pub async fn a_quarantine_outlives_the_end_of_a_lease(harness: &impl Harness) {
    let (mut a, mut b, mut c) = (Host::start(harness).await, Host::start(harness).await, Host::start(harness).await);
    let account = key("t/account:1");
    let long = harness.lease_ttl() * 3;
    a.take(&account, long).await;
    let lease = a.kill().await;
    b.claim(&account, Duration::ZERO);
    b.gained(&account).await;
    b.end_lease().await;
    c.claim(&account, Duration::ZERO);
    let gained = c.gained(&account).await;
    let from = gained.seen.max(gained.quarantined_until);
    assert!(from >= lease + long, "a host that left took the quarantine with it");
}

pub async fn a_dead_claimant_is_passed_over(harness: &impl Harness) {
    let (mut a, mut b, mut c) = (Host::start(harness).await, Host::start(harness).await, Host::start(harness).await);
    let account = key("t/account:1");
    a.take(&account, DELAY).await;
    b.queue_for(&account, DELAY).await;
    c.queue_for(&account, DELAY).await;
    b.kill().await;
    let death = clock::now();
    a.give_up(&account);
    let gained = c.gained(&account).await;
    assert_in_time(harness, &gained, death, DELAY);
    c.settle().await;
    c.give_up(&account);
    a.take(&account, DELAY).await;
}

pub async fn a_frozen_host_loses_its_lease(harness: &impl Harness) {
    let (mut a, mut b) = (Host::spawn(harness).await, Host::start(harness).await);
    let (account, free) = (key("t/account:1"), key("t/free"));
    a.take(&account, DELAY).await;
    b.queue_for(&account, Duration::ZERO).await;
    a.freeze().await;
    // What it is asked for in its sleep, it finds when it wakes.
    a.claim(&free, DELAY);
    a.drain();
    let lease = a.leased_until;
    let gained = b.gained(&account).await;
    assert_waited_out(&gained, lease, DELAY);
    let woken = clock::now();
    a.thaw();
    a.lease_lost().await;
    let believes = |event: &Event| {
        matches!(event, Event::Gained { .. }) || matches!(event, Event::LeaseRenewed { until } if *until >= woken)
    };
    assert_eq!(a.count_before_last_wait(believes), 0, "nothing is granted between waking and knowing");
    // It goes on as another incarnation, behind the new owner.
    a.renewed().await;
    a.queue_for(&account, DELAY).await;
    b.contended(&account).await;
    b.give_up(&account);
    assert!(a.gained(&account).await.epoch > gained.epoch);
}

pub async fn a_briefly_frozen_host_keeps_its_lease(harness: &impl Harness) {
    let (mut a, mut b) = (Host::spawn(harness).await, Host::start(harness).await);
    let account = key("t/account:1");
    let epoch = a.take(&account, DELAY).await.epoch;
    b.queue_for(&account, DELAY).await;
    a.freeze().await;
    let until = clock::now() + harness.lease_ttl() / 3;
    while clock::now() < until {
        b.renewed().await;
    }
    a.thaw();
    a.settle().await;
    assert!(a.take(&account, DELAY).await.epoch > epoch);
    assert_eq!(a.count(|event| *event == Event::LeaseLost), 0);
    assert!(!b.has_gained(&account));
}

/// Whoever wakes from a long sleep knows only old counters; the others have beaten since.
pub async fn a_frozen_observer_judges_nobody(harness: &impl Harness) {
    let (mut a, mut b) = (Host::start(harness).await, Host::spawn(harness).await);
    let account = key("t/account:1");
    a.take(&account, DELAY).await;
    b.queue_for(&account, DELAY).await;
    b.freeze().await;
    let until = clock::now() + harness.lease_ttl() * 3;
    while clock::now() < until {
        a.renewed().await;
    }
    b.thaw();
    b.renewed().await;
    b.settle().await;
    a.settle().await;
    assert_eq!(a.count(|event| *event == Event::LeaseLost), 0, "a live host was taken for dead");
    assert!(!b.has_gained(&account));
}

pub async fn epochs_never_go_back(harness: &impl Harness) {
    let account = key("t/account:1");
    let mut last = Epoch(0);
    let mut higher = |gained: Gained| {
        assert!(gained.epoch > last, "{:?} after {last:?}", gained.epoch);
        last = gained.epoch;
    };
    for _ in 0..2 {
        let mut a = Host::start(harness).await;
        higher(a.take(&account, Duration::ZERO).await);
        a.give_up(&account);
        higher(a.take(&account, Duration::ZERO).await);
        a.end_lease().await;
        // Everything is clean now: nothing but the counter remembers the key.
        let mut b = Host::spawn(harness).await;
        higher(b.take(&account, Duration::ZERO).await);
        b.kill().await;
        let mut c = Host::start(harness).await;
        c.claim(&account, Duration::ZERO);
        higher(c.gained(&account).await);
        // Long enough for the dead to be cleaned up.
        c.give_up(&account);
        c.settle().await;
        higher(c.take(&account, Duration::ZERO).await);
        c.end_lease().await;
    }
}
