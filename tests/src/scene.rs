//! A scene: steady load on a stage, one fault, its end, and the load going on until all is well again. Then it is
//! judged, and told in one line.
//!
//! Every hot key has clients of its own, so that one which is blocked holds up no other. What is measured is what the
//! upstream saw: `window` is the longest stretch after the fault in which no guarded request was let through,
//! `worst key` the same of the one hot key that fared worst, `new keys` the same of keys that nobody had used before
//! (which need the store), and `again` how long after the end of the fault the last key was let through once more.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;

use crate::checker::{Verdict, judge};
use crate::host::HostConfig;
use crate::http::Ask;
use crate::load::{Load, Outcome};
use crate::stage::{Routing, Setup, Stage};
use crate::upstream::Execution;
use crate::wait::{PATIENCE, until};

/// Session TTL of all hosts.
pub const TTL: Duration = Duration::from_millis(1_000);
/// Lease TTL of all hosts.
pub const LEASE: Duration = Duration::from_millis(2_000);
/// How long after its end a lease may be taken for alive: a new leader of etcd gives every lease its whole time again
/// and an election on top, and ends leases twice a second.
pub const EXPIRY: Duration = Duration::from_millis(3_500);
/// What a busy machine may add to any of these.
const SLACK: Duration = Duration::from_millis(2_500);

/// More than any load comes to: it runs until it is stopped.
const ENDLESS: usize = usize::MAX;

/// How a key is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// All the time, by one client of each proxy.
    Hot,
    /// Now and then.
    Cold,
    /// All the time, by one client, for work that is longer than any lease.
    Long,
    /// Once.
    New,
}

impl Use {
    fn name(self) -> &'static str {
        match self {
            Self::Hot => "hot",
            Self::Cold => "cold",
            Self::Long => "long",
            Self::New => "new",
        }
    }

    /// How long the upstream works on a request.
    pub fn work(self) -> Duration {
        match self {
            Self::Hot | Self::Cold | Self::New => Duration::from_millis(20),
            Self::Long => Duration::from_millis(2_500),
        }
    }

    /// How long keys stay locked after a hold that ended uncleanly: what the upstream may still be at.
    fn lock_delay(self) -> Duration {
        match self {
            Self::Hot | Self::Cold | Self::New => Duration::from_millis(500),
            Self::Long => self.work() + Duration::from_millis(500),
        }
    }

    fn key(self, number: usize) -> String {
        format!("default/{}:{number}", self.name())
    }

    fn ask(self, number: usize) -> Ask {
        Ask::post(&format!("/{}/{number}", self.name())).behave(&format!("delay={}", self.work().as_millis()))
    }
}

/// What a scene is made of.
#[derive(Clone, Debug)]
pub struct Script {
    /// For the line that tells about it.
    pub name: &'static str,
    /// Addresses of the members of an etcd cluster; none for one SQLite file.
    pub etcd: Vec<SocketAddr>,
    /// How many hosts.
    pub hosts: usize,
    /// Which hosts a proxy knows.
    pub routing: Routing,
    /// How many keys are used for long work.
    pub long_keys: usize,
    /// Further lines of the hosts' configuration.
    pub more: &'static str,
}

/// How many keys there are of these uses.
const HOT: usize = 4;
const COLD: usize = 40;
const COLD_CLIENTS: usize = 4;

impl Script {
    /// Two hosts, known to both proxies; short work only.
    pub fn new(name: &'static str) -> Self {
        Self { name, etcd: Vec::new(), hosts: 2, routing: Routing::Spread, long_keys: 0, more: "" }
    }

    /// The configuration of its hosts.
    pub fn host(&self) -> HostConfig {
        let millis = |time: Duration| u32::try_from(time.as_millis()).expect("a short time");
        HostConfig {
            ttl_ms: millis(TTL),
            heartbeat_ms: millis(TTL / 4),
            lease_ms: millis(LEASE),
            more: self.more.to_owned(),
            ..HostConfig::default()
        }
    }

    fn setup(&self) -> Setup {
        let rule = |of: Use, lock_delay: Duration| {
            let (name, lock_delay) = (of.name(), lock_delay.as_millis());
            format!("POST /{name}/{{id}} key={name}:{{id}} wait=60s hold=30s lock_delay={lock_delay}ms")
        };
        let rules = [Use::Hot, Use::Cold, Use::Long, Use::New].map(|of| rule(of, of.lock_delay()));
        let bare = "POST /bare/{id} key=bare:{id} wait=60s hold=30s lock_delay=0".to_owned();
        let pairs =
            "POST /pair/{one}/{other} key=pair:{one},pair:{other} wait=60s hold=30s lock_delay=500ms".to_owned();
        Setup {
            rules: rules.into_iter().chain([bare, pairs]).collect(),
            host: self.host(),
            etcd: self.etcd.clone(),
            hosts: self.hosts,
            // Pinned, each host has a proxy.
            envoys: if self.routing == Routing::Pinned { self.hosts } else { 2 },
            routing: self.routing,
        }
    }

    /// The keys that are used again and again.
    fn keys(&self) -> impl Iterator<Item = (Use, usize)> + use<> {
        let many = |of, count| (0..count).map(move |number| (of, number));
        many(Use::Hot, HOT).chain(many(Use::Cold, COLD)).chain(many(Use::Long, self.long_keys))
    }
}

/// More scenes at once would disturb each other's times; two mostly wait.
static STAGES: Semaphore = Semaphore::const_new(2);

/// A scene being played.
pub struct Scene {
    /// Everything that can be broken.
    pub stage: Stage,
    script: Script,
    loads: Vec<Load>,
    struck: Option<Instant>,
    mended: Option<Mended>,
    _turn: SemaphorePermit<'static>,
}

/// The end of the fault.
#[derive(Clone, Copy, Debug)]
struct Mended {
    at: Instant,
    /// How many requests the upstream had seen.
    seen: usize,
}

/// Whether requests may be turned away in a scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusals {
    /// None: every request has wait left.
    None,
    /// Those whose holds were lost while the upstream worked; whoever still waits goes on waiting.
    LostHolds,
}

impl Scene {
    /// Sets the stage and starts the load; returns when every key has been used.
    pub async fn open(script: Script) -> Self {
        Self::set(script).await.loaded().await
    }

    /// Sets the stage; the load is the caller's.
    pub async fn set(script: Script) -> Self {
        let turn = STAGES.acquire().await.expect("nobody closes it");
        let stage = Stage::set(&script.setup()).await;
        Self { stage, script, loads: Vec::new(), struck: None, mended: None, _turn: turn }
    }

    async fn loaded(mut self) -> Self {
        let proxies = self.stage.proxies();
        for (of, key) in self.script.keys() {
            let clients = match of {
                Use::Hot => &proxies[..],
                Use::Long => std::slice::from_ref(&proxies[key % proxies.len()]),
                Use::Cold | Use::New => continue,
            };
            self.loads.push(Load::start(clients, clients.len(), ENDLESS, move |_| of.ask(key)));
        }
        self.loads.push(Load::start(&proxies, COLD_CLIENTS, ENDLESS, |number| Use::Cold.ask(number % COLD)));
        self.loads.push(Load::start(&proxies, proxies.len(), ENDLESS, |number| Use::New.ask(number)));
        self.passed("every key", 0, self.script.keys()).await;
        self
    }

    /// The fault comes now.
    pub fn strike(&mut self) {
        self.struck = Some(Instant::now());
    }

    /// From now on nothing is in the way of any key but what is left of sessions, leases and lock delays.
    pub fn mend(&mut self) {
        self.mended = Some(Mended { at: Instant::now(), seen: self.stage.upstream.count() });
    }

    /// Waits until this many more requests have been let through.
    pub async fn more(&self, count: usize) {
        let enough = self.stage.upstream.count() + count;
        let look = async || (self.stage.upstream.count() >= enough).then_some(());
        until(&format!("{count} more requests"), PATIENCE, look).await;
    }

    /// Waits until every hot key has been let through once more.
    pub async fn every_hot_key(&self) {
        let hot = self.script.keys().filter(|(of, _)| *of == Use::Hot);
        self.passed("every hot key", self.stage.upstream.count(), hot).await;
    }

    /// Asks for every key until each was let through. How long that took is judged in the end.
    pub async fn recovered(&self) {
        let (proxies, mended) = (self.stage.proxies(), self.mended.expect("the scene was mended"));
        // The others are asked for all the time.
        let mut asking = JoinSet::new();
        for (index, (of, key)) in self.script.keys().filter(|(of, _)| *of == Use::Cold).enumerate() {
            let let_through = ask_until_let_through(of.ask(key), proxies[index % proxies.len()]);
            asking.spawn(tokio::time::timeout(PATIENCE, let_through));
        }
        self.passed("every key again", mended.seen, self.script.keys()).await;
        let all = asking.join_all().await;
        assert!(all.iter().all(Result::is_ok), "every proxy lets requests through again within {PATIENCE:?}");
    }

    /// The host that has a key.
    pub async fn host_of(&self, of: Use, key: usize) -> usize {
        let path = format!("/v1/locks/default/{}:{key}", of.name());
        until("a host to own the key", PATIENCE, async || {
            for (number, host) in self.stage.hosts.iter().enumerate() {
                let answer = Ask::get(&path).send(host.api).await.ok()?;
                if answer.status == 200 && answer.json()["ownership"] == "owned" {
                    return Some(number);
                }
            }
            None
        })
        .await
    }

    /// Lets the fault last for at least this long.
    pub async fn outlast(&self, time: Duration) {
        let struck = self.struck.expect("the fault has come");
        tokio::time::sleep_until((struck + time).into()).await;
    }

    /// Waits until all these keys have been let through, not counting the first `skip` requests.
    async fn passed(&self, what: &str, mut skip: usize, keys: impl Iterator<Item = (Use, usize)>) {
        let mut missing: BTreeSet<String> = keys.map(|(of, key)| of.key(key)).collect();
        until(what, PATIENCE, async || {
            skip = self.stage.upstream.look(skip, |execution| {
                missing.remove(execution.key().unwrap_or_default());
            });
            missing.is_empty().then_some(())
        })
        .await;
    }

    /// Stops the load, judges what the upstream saw, and prints the line.
    ///
    /// # Panics
    /// If the lock was broken, a key took too long to come back, or a request was left without an answer.
    pub async fn close(self, refusals: Refusals) -> Report {
        let mended = self.mended;
        let script = self.script.clone();
        let report = self.report().await;
        report.print();
        report.verdict.assert_safe();
        assert!(report.faults.is_empty(), "some were left without an answer: {:?}", report.faults);
        let allowed = |what: &str| refusals == Refusals::LostHolds && what.contains("urn:turnstile:problem:lock-lost");
        let wrong: Vec<_> = report.refused.iter().filter(|(_, what)| !allowed(what)).collect();
        assert!(wrong.is_empty(), "nobody else had to be turned away: {wrong:?}");
        if mended.is_some() {
            for (of, key) in script.keys() {
                let bound = TTL + LEASE + EXPIRY + of.lock_delay() + of.work() + SLACK;
                let name = of.key(key);
                let after = report.again.get(&name);
                assert!(after.is_some_and(|after| *after < bound), "I6 is broken: {name} was back {after:?}");
            }
        }
        report
    }

    async fn report(self) -> Report {
        let mut outcome = Outcome::default();
        let ended = Instant::now();
        self.loads.iter().for_each(Load::wind_down);
        for load in self.loads {
            outcome.merge(load.stop().await);
        }
        let executions = self.stage.upstream.executions();
        let struck = self.struck.unwrap_or(ended);
        let gap = |prefix: &str| longest_gap(starts(&executions, prefix), struck, ended);
        let mended = self.mended.map_or(ended, |mended| mended.at);
        let mut again = first_starts(executions.iter().filter(|execution| execution.start >= mended));
        again.retain(|key, _| !key.starts_with("default/new:"));
        Report {
            scene: self.script.name,
            requests: outcome.statuses.values().sum::<usize>() + outcome.faults.len(),
            refused: outcome
                .refusals
                .into_iter()
                .map(|(at, what)| (at.saturating_duration_since(struck), what))
                .collect(),
            faults: outcome.faults,
            window: gap(""),
            worst_key: (0..HOT).map(|number| gap(&Use::Hot.key(number))).max().unwrap_or_default(),
            new_keys: gap("default/new:"),
            again: again.into_iter().map(|(key, start)| (key.to_owned(), start - mended)).collect(),
            verdict: judge(&executions),
        }
    }
}

/// What came of a scene.
#[derive(Debug)]
pub struct Report {
    scene: &'static str,
    requests: usize,
    /// How long after the fault each refusal came, and what it said.
    refused: Vec<(Duration, String)>,
    faults: Vec<String>,
    window: Duration,
    worst_key: Duration,
    new_keys: Duration,
    again: BTreeMap<String, Duration>,
    /// What the upstream's record shows.
    pub verdict: Verdict,
}

impl Report {
    fn refusals_by_kind(&self) -> BTreeMap<String, Vec<Duration>> {
        let mut kinds = BTreeMap::<String, Vec<Duration>>::new();
        for (at, what) in &self.refused {
            // The rest names the key.
            let kind = what.split_once("\"type\":").map_or(what.as_str(), |(_, kind)| kind.trim_end_matches('}'));
            kinds.entry(kind.to_owned()).or_default().push(*at);
        }
        kinds.values_mut().for_each(|times| times.sort_unstable());
        kinds
    }

    fn print(&self) {
        // Not by a macro: the test framework keeps what those print to itself when a test succeeds.
        let _ = writeln!(std::io::stderr(), "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let again = self.again.values().max().copied().unwrap_or_default();
        let times = [self.window, self.worst_key, self.new_keys, again];
        let [window, worst_key, new_keys, again] = times.map(|time| time.as_secs_f64());
        write!(
            f,
            "scene | {:<44} | requests {:>5} | refused {:>4} | window {window:>5.2} s | worst key {worst_key:>5.2} s \
             | new keys {new_keys:>5.2} s | again {again:>5.2} s | orphans {}",
            self.scene,
            self.requests,
            self.refused.len(),
            self.verdict.orphan_overlaps.len(),
        )?;
        for (what, times) in &self.refusals_by_kind() {
            let (first, last) = (times.first().copied().unwrap_or_default(), times.last().copied().unwrap_or_default());
            write!(f, "\n      | {} x {what} | from {first:.2?} to {last:.2?}", times.len())?;
        }
        Ok(())
    }
}

async fn ask_until_let_through(ask: Ask, proxy: SocketAddr) {
    while !ask.send(proxy).await.is_ok_and(|answer| answer.status == 200) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// When each key was first let through.
fn first_starts<'e>(executions: impl IntoIterator<Item = &'e Execution>) -> BTreeMap<&'e str, Instant> {
    let mut first = BTreeMap::new();
    for execution in executions {
        for (key, _) in execution.locks() {
            first.entry(key).or_insert(execution.start);
        }
    }
    first
}

/// When requests of keys that begin so were let through.
fn starts(executions: &[Execution], prefix: &str) -> Vec<Instant> {
    let guarded = executions.iter().filter(|execution| execution.key().is_some_and(|key| key.starts_with(prefix)));
    let mut starts: Vec<Instant> = guarded.map(|execution| execution.start).collect();
    starts.sort_unstable();
    starts
}

/// The longest time without a start between two instants; the stretch in which `from` lies counts from `from` on.
fn longest_gap(starts: Vec<Instant>, from: Instant, to: Instant) -> Duration {
    let inside = starts.into_iter().filter(|start| (from..=to).contains(start));
    let marks: Vec<Instant> = std::iter::once(from).chain(inside).chain([to.max(from)]).collect();
    marks.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}
