//! Lock cycles through a host's gRPC port: sessions that pipeline, on a core of their own, and a host on another.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use turnstile_protocol::v1::server_item::Item;
use turnstile_protocol::v1::{ClientItem, Ending, Heartbeat, Release};

use super::super::{Fault, machine};
use super::row::{Row, SESSIONS};
use crate::host::{Host, HostConfig};
use crate::session_client::{RawSession, acquire, hello, message};

/// How long a session goes without a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long the keys may take to become the host's.
const WARM_UP_MAX: Duration = Duration::from_secs(60);

/// How long the load runs before a window, once every key is the host's.
const SETTLING: Duration = Duration::from_millis(500);

/// The cores of a measurement.
pub struct Cores {
    host: usize,
    others_before: CpuSet,
}

/// The figures of one window.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// Locks that were granted and released, per second.
    pub cycles_per_s: f64,
    /// CPU of the host, in microseconds per cycle.
    pub host_us: f64,
    /// How much of its core the host used.
    pub host_cores: f64,
    /// How much of its core the load used.
    pub load_cores: f64,
    /// CPU that other programs on the machine used meanwhile, in cores. About: it is what is left over.
    pub others_cores: f64,
}

impl Cores {
    /// Takes two cores, one for the host and one for this thread, which the load runs on.
    ///
    /// # Errors
    /// If there are no two.
    pub fn take() -> Result<Self, Fault> {
        let no_cores = || Fault::Machine("two cores are needed, one for the host and one for the load".to_owned());
        let allowed = sched_getaffinity(None).map_err(|_| no_cores())?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        let (Some(host), Some(load)) = (cores.next(), cores.next()) else { return Err(no_cores()) };
        let mut own = CpuSet::new();
        own.set(load);
        sched_setaffinity(None, &own).map_err(|_| no_cores())?;
        Ok(Self { host, others_before: allowed })
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        // Nothing depends on it any more if it fails.
        let _ = sched_setaffinity(None, &self.others_before);
    }
}

/// What the sessions of a window share.
#[derive(Default)]
struct Tally {
    cycles: Cell<u64>,
    /// The first fault of a session.
    fault: Cell<Option<String>>,
}

/// CPU used so far, and cycles made.
struct Used {
    at: Instant,
    cycles: u64,
    host: Duration,
    load: Duration,
    all: Duration,
}

impl Used {
    fn now(host: &Host, tally: &Tally) -> Self {
        let own = clock_gettime(ClockId::ThreadCPUTime);
        let load = Duration::new(own.tv_sec.unsigned_abs(), u32::try_from(own.tv_nsec).unwrap_or_default());
        let (host, all) = (host.process.cpu_time(), machine::busy());
        Self { at: Instant::now(), cycles: tally.cycles.get(), host, load, all }
    }
}

/// Measures one window on a new host.
///
/// # Errors
/// If a session fails, or a request is not granted.
pub async fn measure(row: Row, cores: &Cores, window: Duration) -> Result<Sample, Fault> {
    let host = Host::start(&HostConfig {
        // As shipped, but that no key is given up while others are being claimed.
        ttl_ms: 4_000,
        heartbeat_ms: 1_000,
        lease_ms: 5_000,
        more: "[ownership]\nidle = \"1h\"".to_owned(),
        core: Some(cores.host),
        ..HostConfig::default()
    })
    .await;
    let tally = Rc::new(Tally::default());
    let sessions = tokio::task::LocalSet::new();
    for number in 0..SESSIONS {
        let (address, tally) = (host.sessions, Rc::clone(&tally));
        sessions.spawn_local(async move {
            let Err(fault) = run_session(row, number, address, &tally).await;
            tally.fault.set(Some(fault));
        });
    }
    let keys: usize = (0..SESSIONS).map(|session| row.keys(session).len()).sum();
    let work = async {
        let start = Instant::now();
        while tally.cycles.get() < keys as u64 && start.elapsed() < WARM_UP_MAX {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(SETTLING).await;
        let before = Used::now(&host, &tally);
        tokio::time::sleep(window).await;
        sample(&before, &Used::now(&host, &tally))
    };
    let sample = sessions.run_until(work).await;
    match tally.fault.take() {
        Some(fault) => Err(Fault::Session { row: row.title(), fault }),
        None => Ok(sample),
    }
}

/// One session: as many requests under way as the row says, and a new one for each that is released.
async fn run_session(
    row: Row,
    number: usize,
    host: SocketAddr,
    tally: &Tally,
) -> Result<std::convert::Infallible, String> {
    let mut session = RawSession::open(host, message(hello(&format!("bench-{number}"))))
        .await
        .map_err(|status| status.to_string())?;
    let keys = row.keys(number);
    let mut wanted = keys.iter().cycle();
    let mut next_id = 1;
    let mut ask = || {
        let key = wanted.next().map_or("", String::as_str);
        let request = acquire(next_id, key);
        next_id += 1;
        turnstile_protocol::v1::Acquire { wait_ms: 60_000, lock_delay_ms: 15_000, ..request }
    };
    session.send_all((0..row.in_flight()).map(|_| ask().into()).collect()).await;
    let (mut beat, mut seq) = (Instant::now(), 1);
    loop {
        let received = session.message().await.map_err(|status| status.to_string())?;
        let mut items: Vec<ClientItem> = Vec::with_capacity(2 * received.items.len() + 1);
        for item in received.items {
            match item.item {
                Some(Item::Grant(grant)) => {
                    items.push(Release { id: grant.id, ending: Ending::Clean.into() }.into());
                    items.push(ask().into());
                }
                Some(Item::Welcome(_) | Item::HeartbeatAck(_)) => {}
                other => return Err(format!("{other:?}")),
            }
        }
        tally.cycles.set(tally.cycles.get() + items.len() as u64 / 2);
        if beat.elapsed() >= HEARTBEAT {
            (beat, seq) = (Instant::now(), seq + 1);
            items.push(Heartbeat { seq }.into());
        }
        if !items.is_empty() {
            session.send_all(items).await;
        }
    }
}

fn sample(before: &Used, after: &Used) -> Sample {
    let seconds = (after.at - before.at).as_secs_f64();
    let cycles = (after.cycles - before.cycles) as f64;
    let between = |of: fn(&Used) -> Duration| of(after).saturating_sub(of(before)).as_secs_f64();
    let (host, load, all) = (between(|used| used.host), between(|used| used.load), between(|used| used.all));
    Sample {
        cycles_per_s: cycles / seconds,
        host_us: host * 1e6 / cycles,
        host_cores: host / seconds,
        load_cores: load / seconds,
        others_cores: (all - host - load).max(0.0) / seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_shared_out_among_the_cycles() {
        let start = Instant::now();
        let used = |seconds, cycles, host, load, all| {
            let (at, time) = (start + Duration::from_secs(seconds), Duration::from_millis);
            Used { at, cycles, host: time(host), load: time(load), all: time(all) }
        };
        let sample = sample(&used(0, 50, 10, 100, 1_000), &used(2, 1_050, 1_010, 300, 2_600));
        assert_eq!((sample.cycles_per_s, sample.host_us, sample.host_cores), (500.0, 1_000.0, 0.5));
        // 1.6 s of the machine, of which 1.2 s are ours, in 2 s.
        assert!((sample.load_cores - 0.1).abs() < 1e-9 && (sample.others_cores - 0.2).abs() < 1e-9, "{sample:?}");
    }
}
