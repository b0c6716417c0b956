//! Everything at once: hosts that claim and yield the same keys, while members, networks, leases and hosts fail at random.
//! Afterwards the intervals in which each host could grant a key are compared: none may overlap, and epochs grow.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use turnstile_core::{ClaimId, Epoch, Instant, LockKey};
use turnstile_host::clock;
use turnstile_host::store::{Event, Operation, Store, StoreError};
use turnstile_tests::etcd::{Etcd, EtcdConfig};
use turnstile_tests::link::Link;

use crate::Place;
use crate::conformance::Harness;
use crate::conformance::hosts::key;

const HOSTS: usize = 3;
const MEMBERS: usize = 3;
const KEYS: usize = 6;
const FAULTS: usize = 24;
const DELAY: Duration = Duration::from_millis(300);
/// How long a host holds what it gained, and waits after a failure.
const TICK: Duration = Duration::from_millis(40);
/// After the last trouble: leases run out, quarantines pass, and everybody gets every key.
const RECOVERY: Duration = Duration::from_secs(30);
/// Set to look at other histories: the first seed, and how many follow each other.
const SEED: &str = "TURNSTILE_ETCD_SEED";
const HISTORIES: &str = "TURNSTILE_ETCD_HISTORIES";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_no_two_hosts_own_a_key_at_once() {
    let number =
        |name, default: u64| std::env::var(name).map_or(default, |text| text.parse().expect("a number is given"));
    let first = number(SEED, 1);
    for seed in first..first + number(HISTORIES, 2) {
        println!("seed {seed}; {SEED}={seed} begins with this one (timing is not replayed)");
        history(&mut Random(seed)).await;
    }
}

async fn history(random: &mut Random) {
    let mut etcd = Etcd::start(&EtcdConfig::cluster()).await;
    let place = Place::on(&etcd).with(|config| config.request_timeout = Duration::from_millis(300));
    let (mut links, mut orders, mut tasks) = (Vec::new(), Vec::new(), Vec::new());
    let healed = Arc::new(AtomicBool::new(false));
    for host in 0..HOSTS {
        let mut its_links = Vec::new();
        for member in 0..MEMBERS {
            its_links.push(Link::to(etcd.client_address(member)).await);
        }
        let endpoints: Vec<String> = its_links.iter().map(|link| etcd.url(link.address)).collect();
        links.extend(its_links);
        let (order, ordered) = unbounded_channel();
        orders.push(order);
        let place = place.with(|config| config.endpoints = endpoints).first(host);
        tasks.push(tokio::spawn(Actor::new(place, Arc::clone(&healed)).await.run(ordered)));
    }
    let mut down = BTreeSet::new();
    let mut frozen = BTreeSet::new();
    for _ in 0..FAULTS {
        trouble(random, &mut etcd, &place, &links, &orders, (&mut down, &mut frozen)).await;
        tokio::time::sleep(Duration::from_millis(100 + random.below(900))).await;
    }
    frozen.into_iter().for_each(|member| etcd.thaw(member));
    down.into_iter().for_each(|member| etcd.restart(member));
    links.iter().for_each(Link::heal);
    etcd.ready().await;
    healed.store(true, Ordering::Relaxed);
    let mut intervals = Vec::new();
    for task in tasks {
        let ended = tokio::time::timeout(RECOVERY, task).await.expect("everybody gets every key after the troubles");
        intervals.extend(ended.unwrap());
    }
    check(intervals);
}

/// Makes one trouble, or ends one.
async fn trouble(
    random: &mut Random,
    etcd: &mut Etcd,
    place: &Place,
    links: &[Link],
    orders: &[UnboundedSender<Order>],
    (down, frozen): (&mut BTreeSet<usize>, &mut BTreeSet<usize>),
) {
    let member = random.index(MEMBERS);
    let link = &links[random.index(links.len())];
    match random.below(12) {
        0 if down.insert(member) => {
            frozen.remove(&member);
            etcd.kill(member);
        }
        1 if !down.contains(&member) && frozen.insert(member) => etcd.freeze(member).await,
        0..=2 => {
            if down.remove(&member) {
                etcd.restart(member);
            } else if frozen.remove(&member) {
                etcd.thaw(member);
            }
        }
        3 => link.cut(),
        4 => link.silence(),
        5 => link.deafen(),
        6..=8 => links.iter().for_each(Link::heal),
        // These two need a majority; without one they are no trouble.
        9 => {
            let _ = etcd.try_ctl(&["compaction", "--command-timeout=1s", &random.below(2_000).to_string()]).await;
        }
        10 => {
            let range = ["get", "--command-timeout=1s", "--prefix", "--keys-only", &place.named("hosts/")];
            let hosts = etcd.try_ctl(&range).await.unwrap_or_default();
            let names: Vec<&str> = hosts.split_whitespace().collect();
            if !names.is_empty() {
                let _ = etcd.try_ctl(&["del", "--command-timeout=1s", names[random.index(names.len())]]).await;
            }
        }
        _ => drop(orders[random.index(orders.len())].send(Order::Die)),
    }
}

/// No two intervals of a key overlap, and their epochs grow.
fn check(intervals: Vec<Interval>) {
    let mut by_key: BTreeMap<String, Vec<Interval>> = BTreeMap::new();
    for interval in intervals {
        by_key.entry(interval.key.to_string()).or_default().push(interval);
    }
    assert_eq!(by_key.len(), KEYS);
    for (key, mut intervals) in by_key {
        intervals.sort_by_key(|interval| interval.epoch);
        for pair in intervals.windows(2) {
            assert!(pair[0].epoch < pair[1].epoch, "the epoch of {key} came twice: {pair:?}");
            assert!(pair[0].until <= pair[1].from, "{key} had two owners: {pair:?}");
        }
        println!("{key} had {} owners", intervals.len());
    }
}

/// What a host is told to do.
enum Order {
    /// At once; another takes its place.
    Die,
}

/// When an incarnation could grant a key.
#[derive(Debug)]
struct Interval {
    key: LockKey,
    epoch: Epoch,
    from: Instant,
    /// When it gave it up; or the end of its lease and of the lock delay, if that was lost.
    until: Instant,
}

/// A host that takes all keys again and again.
struct Actor {
    place: Place,
    store: Arc<dyn Store>,
    events: UnboundedReceiver<Event>,
    claims: u64,
    claimed: HashMap<LockKey, ClaimId>,
    failed: BTreeSet<String>,
    holding: HashMap<LockKey, (Epoch, Instant)>,
    leased_until: Instant,
    intervals: Vec<Interval>,
    /// No more troubles come.
    healed: Arc<AtomicBool>,
    gained_since: BTreeSet<String>,
}

impl Actor {
    async fn new(place: Place, healed: Arc<AtomicBool>) -> Self {
        let (store, events) = place.open().await;
        let mut actor = Self {
            place,
            store,
            events,
            claims: 0,
            claimed: HashMap::new(),
            failed: BTreeSet::new(),
            holding: HashMap::new(),
            leased_until: Instant::default(),
            intervals: Vec::new(),
            healed,
            gained_since: BTreeSet::new(),
        };
        actor.claim_all();
        actor
    }

    /// Until it has had every key since the troubles ended.
    async fn run(mut self, mut orders: UnboundedReceiver<Order>) -> Vec<Interval> {
        let mut tick = tokio::time::interval(TICK);
        while self.gained_since.len() < KEYS {
            tokio::select! {
                event = self.events.recv() => self.hear(event.expect("the store lives")),
                Some(Order::Die) = orders.recv() => self.die().await,
                _ = tick.tick() => self.tick(),
            }
        }
        for (key, (epoch, from)) in std::mem::take(&mut self.holding) {
            self.end(key, epoch, from, clock::now().min(self.leased_until));
        }
        self.store.submit(Operation::EndLease);
        while let Some(event) = self.events.recv().await {
            if event == Event::LeaseEnded {
                return self.intervals;
            }
        }
        panic!("the store is gone before it has ended its lease");
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::LeaseRenewed { until } => {
                assert!(until >= self.leased_until, "a lease never gets shorter");
                self.leased_until = until;
            }
            Event::LeaseLost => {
                self.all_is_lost();
                self.claim_all();
            }
            Event::Gained { key, claim, epoch, quarantined_until, .. } => {
                if self.claimed.get(&key) != Some(&claim) {
                    return;
                }
                if self.healed.load(Ordering::Relaxed) {
                    self.gained_since.insert(key.to_string());
                }
                let from = quarantined_until.max(clock::now());
                assert_eq!(self.holding.insert(key, (epoch, from)), None, "a claim is answered once");
            }
            Event::Failed { key, claim, error } => {
                assert!(!matches!(error, StoreError::Rejected(_)), "{error}");
                if self.claimed.get(&key) == Some(&claim) {
                    self.failed.insert(key.to_string());
                }
            }
            Event::Lost { key } => panic!("nobody changed the record of {key}"),
            Event::Queued { .. } | Event::Contended { .. } | Event::LeaseEnded => {}
        }
    }

    /// Gives up what it has held for a while, and claims it again; and what failed.
    fn tick(&mut self) {
        let now = clock::now();
        for name in std::mem::take(&mut self.failed) {
            self.claim(&key(&name));
        }
        let due = |(_, (_, from)): &(&LockKey, &(Epoch, Instant))| *from <= now;
        let due: Vec<LockKey> = self.holding.iter().filter(due).map(|(key, _)| key.clone()).collect();
        for key in due {
            let Some((epoch, from)) = self.holding.remove(&key) else { continue };
            // Without a lease nothing is granted.
            self.end(key.clone(), epoch, from, now.min(self.leased_until));
            self.store.submit(Operation::Yield { key: key.clone() });
            self.claim(&key);
        }
    }

    fn claim_all(&mut self) {
        self.failed.clear();
        for number in 0..KEYS {
            self.claim(&key(&format!("t/{number}")));
        }
    }

    fn claim(&mut self, key: &LockKey) {
        self.claims += 1;
        let claim = ClaimId(self.claims);
        self.claimed.insert(key.clone(), claim);
        self.store.submit(Operation::Claim { key: key.clone(), claim, lock_delay: DELAY, new_epoch: false });
    }

    fn end(&mut self, key: LockKey, epoch: Epoch, from: Instant, until: Instant) {
        self.intervals.push(Interval { key, epoch, from, until: until.max(from) });
    }

    /// What it granted may go on until the lease that it believed in is over, and the lock delay.
    fn all_is_lost(&mut self) {
        let until = std::mem::take(&mut self.leased_until) + DELAY;
        for (key, (epoch, from)) in std::mem::take(&mut self.holding) {
            self.intervals.push(Interval { key, epoch, from, until: until.max(from) });
        }
    }

    async fn die(&mut self) {
        let (store, events) = self.place.open().await;
        let dying = std::mem::replace(&mut self.store, store);
        tokio::task::spawn_blocking(move || drop(dying)).await.unwrap();
        let mut last_words = std::mem::replace(&mut self.events, events);
        while let Some(event) = last_words.recv().await {
            match event {
                Event::LeaseRenewed { until } => self.leased_until = until,
                // Nobody was left to act on anything else.
                Event::LeaseLost => break,
                _ => {}
            }
        }
        self.all_is_lost();
        self.claim_all();
    }
}

/// A small generator; the histories need no better one.
struct Random(u64);

impl Random {
    /// splitmix64
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }
}
