//! Lock cycles of one load for a while, on one side: etcd's lock service, or Turnstile's hosts on the same etcd.

use std::rc::Rc;
use std::time::{Duration, Instant};

use etcd_client::{Client, LockOptions};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::task::LocalSet;

use super::hosts::start_hosts;
use super::row::{KEYS_OF_ONE, Keys, Load};
use super::tally::{Tally, percentile_us};
use crate::bench::{Fault, machine, session_load};
use crate::etcd::Etcd;
use crate::host::Host;

/// How long the load runs before a window, once every contender has had its turns.
const SETTLING: Duration = Duration::from_secs(1);

/// How long those turns may take.
const WARM_UP_MAX: Duration = Duration::from_secs(60);

/// Leases of the lock service's clients: no keepalive is needed within a window.
const LEASE_S: i64 = 600;

/// Who grants the locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// etcd's lock service.
    LockService,
    /// Turnstile.
    Turnstile,
}

/// The figures of one window.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// Locks that were granted and released, per second.
    pub cycles_per_s: f64,
    /// From a release to the next grant, the median in microseconds.
    pub p50_us: f64,
    /// The same, the 99th percentile.
    pub p99_us: f64,
    /// CPU of all hosts, in microseconds per cycle.
    pub hosts_us: f64,
    /// CPU of all members of etcd, in microseconds per cycle.
    pub etcd_us: f64,
    /// CPU of the load generator, in microseconds per cycle.
    pub load_us: f64,
    /// CPU that other programs on the machine used meanwhile, in cores. About: it is what is left over.
    pub others_cores: f64,
}

/// CPU used so far.
struct Used {
    at: Instant,
    hosts: Duration,
    etcd: Duration,
    load: Duration,
    all: Duration,
}

/// Measures one window. `number` is of no other window on this etcd; `shared` says how many connections to etcd the
/// clients of the lock service share, or how many sessions those of one host.
///
/// # Errors
/// If a contender is not granted what it asks for.
pub async fn measure(
    etcd: &Etcd,
    (load, side): (&Load, Side),
    number: u32,
    shared: usize,
    window: Duration,
) -> Result<Sample, Fault> {
    // One key is passed to and fro between its host and the load, of which only one is at work at a time. With a core
    // each, a machine that is otherwise idle would spend its time on waking cores.
    let core = if load.keys == Keys::One && side == Side::Turnstile { Some(machine::two_cores()?[1]) } else { None };
    let _pinned = core.map(machine::Pinned::to).transpose()?;
    let hosts = match side {
        Side::LockService => Vec::new(),
        Side::Turnstile => start_hosts(etcd, load.hosts, number, ownership(load.keys), core).await,
    };
    let tally = Rc::new(Tally::new(load));
    let contenders = LocalSet::new();
    match side {
        Side::LockService => ask_etcd(etcd, load, number, shared, (&contenders, &tally)).await?,
        Side::Turnstile => ask_hosts(&hosts, load, shared, (&contenders, &tally)),
    }
    let turns = load.contenders * if load.keys == Keys::Own { KEYS_OF_ONE } else { 1 };
    let work = async {
        let start = Instant::now();
        while tally.cycles() < turns && start.elapsed() < WARM_UP_MAX {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(SETTLING).await;
        tally.take();
        let before = Used::now(etcd, &hosts);
        tokio::time::sleep(window).await;
        let after = Used::now(etcd, &hosts);
        sample(&before, &after, &tally.take())
    };
    let sample = contenders.run_until(work).await;
    tally.end();
    // The lock service of etcd 3.4 grants nothing any more after many waiters have gone at once. (Hosts are killed.)
    if side == Side::LockService && tokio::time::timeout(WARM_UP_MAX, contenders).await.is_err() {
        tally.failed("clients that were to end still wait for their locks".to_owned());
    }
    match tally.fault() {
        None if sample.cycles_per_s == 0.0 => failed(load, "nothing was granted".to_owned()),
        None => Ok(sample),
        Some(fault) => failed(load, fault),
    }
}

fn failed<T>(load: &Load, fault: String) -> Result<T, Fault> {
    Err(Fault::Session { row: load.title, fault })
}

/// What the hosts' section `[ownership]` says.
fn ownership(keys: Keys) -> &'static str {
    match keys {
        Keys::FreshGivenUp => "idle = \"1s\"",
        Keys::Own | Keys::Fresh | Keys::One => "",
    }
}

type Crowd<'a> = (&'a LocalSet, &'a Rc<Tally>);

async fn ask_etcd(
    etcd: &Etcd,
    load: &Load,
    number: u32,
    connections: usize,
    (contenders, tally): Crowd<'_>,
) -> Result<(), Fault> {
    let fault = |error: etcd_client::Error| Fault::Session { row: load.title, fault: error.to_string() };
    let mut clients = Vec::new();
    for _ in 0..connections.min(load.contenders) {
        clients.push(Client::connect(etcd.endpoints(), None).await.map_err(fault)?);
    }
    for contender in 0..load.contenders {
        let mut client = clients[contender % clients.len()].clone();
        let lease = client.lease_grant(LEASE_S, None).await.map_err(fault)?.id();
        let (load, tally) = (*load, Rc::clone(tally));
        contenders.spawn_local(async move {
            if let Err(fault) = lock_and_unlock(client, lease, &load, contender, number, &tally).await {
                tally.failed(fault.to_string());
            }
        });
    }
    Ok(())
}

async fn lock_and_unlock(
    mut client: Client,
    lease: i64,
    load: &Load,
    contender: usize,
    number: u32,
    tally: &Tally,
) -> Result<(), etcd_client::Error> {
    let lane = load.lane(contender);
    for turn in 0.. {
        if tally.is_over() {
            break;
        }
        let name = format!("bench-{number}/{}", load.key(contender, turn));
        let lock = client.lock(name, Some(LockOptions::new().with_lease(lease))).await?;
        tally.passed(lane, Instant::now());
        client.unlock(lock.key()).await?;
    }
    client.lease_revoke(lease).await.map(drop)
}

/// Spreads the contenders over the hosts, and at each of them over some sessions.
fn ask_hosts(hosts: &[Host], load: &Load, sessions: usize, (contenders, tally): Crowd<'_>) {
    let sessions = hosts.len() * sessions.min(load.contenders.div_ceil(hosts.len()));
    let mut first = 0;
    for number in 0..sessions {
        let count = (load.contenders - first).div_ceil(sessions - number);
        let (load, tally, address) = (*load, Rc::clone(tally), hosts[number % hosts.len()].sessions);
        contenders.spawn_local(async move {
            let mut turns = vec![0; count];
            let next_key = |one: usize| {
                turns[one] += 1;
                load.key(first + one, turns[one])
            };
            let granted = |one, now| tally.passed(load.lane(first + one), now);
            let name = format!("bench-{number}");
            let Err(fault) = session_load::run(address, &name, count, next_key, granted).await;
            tally.failed(fault);
        });
        first += count;
    }
}

impl Used {
    fn now(etcd: &Etcd, hosts: &[Host]) -> Self {
        let own = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            at: Instant::now(),
            hosts: hosts.iter().map(|host| host.process.cpu_time()).sum(),
            etcd: etcd_cpu(etcd),
            load: Duration::new(own.tv_sec.unsigned_abs(), u32::try_from(own.tv_nsec).unwrap_or_default()),
            all: machine::busy(),
        }
    }
}

/// CPU that all members used so far.
pub fn etcd_cpu(etcd: &Etcd) -> Duration {
    (0..etcd.members()).map(|member| etcd.process(member).cpu_time()).sum()
}

fn sample(before: &Used, after: &Used, took: &[Duration]) -> Sample {
    let seconds = (after.at - before.at).as_secs_f64();
    let cycles = took.len() as f64;
    let between = |of: fn(&Used) -> Duration| of(after).saturating_sub(of(before)).as_secs_f64();
    let [hosts, etcd, load] = [between(|used| used.hosts), between(|used| used.etcd), between(|used| used.load)];
    Sample {
        cycles_per_s: cycles / seconds,
        p50_us: percentile_us(took, 50),
        p99_us: percentile_us(took, 99),
        hosts_us: hosts * 1e6 / cycles,
        etcd_us: etcd * 1e6 / cycles,
        load_us: load * 1e6 / cycles,
        others_cores: (between(|used| used.all) - hosts - etcd - load).max(0.0) / seconds,
    }
}
