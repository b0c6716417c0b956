//! What many owned keys weigh in etcd and in their host, what they cost while nobody uses them, and what their owner's
//! death costs.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;

use super::cycles::etcd_cpu;
use super::hosts::start_hosts;
use crate::bench::{Fault, session_load};
use crate::etcd::Etcd;
use crate::host::Host;
use crate::session_client::{Session, Want};

/// How many keys one host comes to own.
pub const KEYS: usize = 100_000;

/// How many are asked for at once while they are claimed.
const CLAIMED_AT_ONCE: usize = 256;

/// Keys of the first claims, which make both sides' buffers grow: their weight does not count.
const WARM_UP: usize = 1_000;

/// How long nothing happens before a window in which nothing is to happen.
const SETTLING: Duration = Duration::from_secs(3);

/// How long etcd is watched while nothing happens.
const IDLE: Duration = Duration::from_secs(10);

/// How many of the dead owner's keys are asked for at the other host.
pub const WANTED: usize = 100;

/// How long etcd is watched after the last of them was granted.
const AFTERMATH: Duration = Duration::from_secs(10);

const TITLE: &str = "100,000 owned keys";

/// The figures of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Growth of a member's resident set, in bytes per key.
    pub etcd_resident: f64,
    /// Growth of what a member's database has in use, in bytes per key.
    pub etcd_database: f64,
    /// Growth of the host's resident set, in bytes per key.
    pub host_resident: f64,
    /// Messages from clients to etcd per second while nobody uses the keys, from two hosts of which one has all keys.
    pub idle_requests_per_s: f64,
    /// CPU of etcd meanwhile, in cores.
    pub idle_etcd_cores: f64,
    /// Every second after the owner was killed.
    pub after_death: Vec<Second>,
    /// From the kill to the first grant of a key of the dead, in seconds.
    pub first_grant_s: f64,
    /// From the kill to the last of the grants, in seconds.
    pub last_grant_s: f64,
}

/// What etcd had to do in a second, about.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Second {
    /// Messages from clients per second.
    pub requests_per_s: f64,
    /// CPU, in cores.
    pub etcd_cores: f64,
}

/// What has been weighed.
struct Weights {
    etcd_resident: u64,
    etcd_database: f64,
    host_resident: u64,
}

/// Measures all of it, on an etcd that has not been used for anything else.
///
/// # Errors
/// If a request is not granted.
pub async fn measure(etcd: &Etcd) -> Result<Sample, Fault> {
    let mut hosts = start_hosts(etcd, 2, 0, "idle = \"1h\"", None).await.into_iter();
    let (Some(mut owner), Some(other)) = (hosts.next(), hosts.next()) else { unreachable!("two were asked for") };
    claim(&owner, "warm-up", WARM_UP).await?;
    let before = Weights::now(etcd, &owner).await;
    claim(&owner, "acct", KEYS).await?;
    let after = Weights::now(etcd, &owner).await;
    let members = etcd.members() as f64;
    let per_key = |growth: f64| growth / KEYS as f64;
    tokio::time::sleep(SETTLING).await;
    let idle = watch(etcd, tokio::time::sleep(IDLE)).await;
    let session = Arc::new(Session::open(other.sessions, "bench").await);
    owner.process.kill();
    let (after_death, (first_grant_s, last_grant_s)) = watch_seconds(etcd, inherit(&session)).await;
    Ok(Sample {
        etcd_resident: per_key((after.etcd_resident as f64 - before.etcd_resident as f64) / members),
        etcd_database: per_key((after.etcd_database - before.etcd_database) / members),
        host_resident: per_key(after.host_resident as f64 - before.host_resident as f64),
        idle_requests_per_s: idle.requests_per_s,
        idle_etcd_cores: idle.etcd_cores,
        after_death,
        first_grant_s,
        last_grant_s,
    })
}

/// Acquires and releases `count` keys, each at least once.
async fn claim(owner: &Host, name: &str, count: usize) -> Result<(), Fault> {
    let (asked, granted) = (Cell::new(0), Cell::new(0));
    let next_key = |_| {
        let number = asked.replace(asked.get() + 1) % count;
        format!("default/{name}:{number:07}")
    };
    let on_grant = |_, _| granted.set(granted.get() + 1);
    let load = session_load::run(owner.sessions, "bench", CLAIMED_AT_ONCE, next_key, on_grant);
    let done = async {
        // Those that were asked for last may be granted before others.
        while granted.get() < count + CLAIMED_AT_ONCE {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        Err(fault) = load => Err(failed(fault)),
        () = done => Ok(()),
    }
}

/// Asks for some of the dead owner's keys, and says how many seconds it took to get the first, and all of them.
async fn inherit(session: &Arc<Session>) -> (f64, f64) {
    let start = Instant::now();
    let mut requests = JoinSet::new();
    for number in 0..WANTED {
        let session = Arc::clone(session);
        requests.spawn(async move {
            let key = format!("default/acct:{:07}", number * (KEYS / WANTED));
            let wait = Duration::from_secs(120);
            session.acquire(Want { key: &key, wait, lock_delay: Duration::from_secs(15) }).await
        });
    }
    let mut first = None;
    while let Some(granted) = requests.join_next().await {
        let granted = granted.expect("no panics inside");
        granted.expect("a key of the dead is granted before the wait is over");
        first.get_or_insert(start.elapsed());
    }
    (first.unwrap_or_default().as_secs_f64(), start.elapsed().as_secs_f64())
}

/// What etcd has to do, second by second, while `work` is done and for a while after.
async fn watch_seconds<T>(etcd: &Etcd, work: impl Future<Output = T>) -> (Vec<Second>, T) {
    let mut seconds = Vec::new();
    let mut work = std::pin::pin!(async {
        let result = work.await;
        tokio::time::sleep(AFTERMATH).await;
        result
    });
    loop {
        let second = watch(etcd, tokio::time::sleep(Duration::from_secs(1)));
        tokio::select! {
            result = &mut work => return (seconds, result),
            second = second => seconds.push(second),
        }
    }
}

/// What etcd has to do on average, while `wait` passes.
async fn watch(etcd: &Etcd, wait: impl Future<Output = ()>) -> Second {
    let (start, requests, cpu) = (Instant::now(), requests(etcd).await, etcd_cpu(etcd));
    wait.await;
    let (took, after, used) = (start.elapsed().as_secs_f64(), self::requests(etcd).await, etcd_cpu(etcd) - cpu);
    Second { requests_per_s: (after - requests) / took, etcd_cores: used.as_secs_f64() / took }
}

/// Messages that etcd received from clients. (Its count of requests handled leaves out those on open streams, such as
/// keepalives.)
async fn requests(etcd: &Etcd) -> f64 {
    sum(etcd, "grpc_server_msg_received_total").await
}

async fn sum(etcd: &Etcd, metric: &str) -> f64 {
    let mut sum = 0.0;
    for member in 0..etcd.members() {
        sum += etcd.metric(member, metric, "").await.unwrap_or_default();
    }
    sum
}

impl Weights {
    async fn now(etcd: &Etcd, host: &Host) -> Self {
        Self {
            etcd_resident: (0..etcd.members()).map(|member| etcd.process(member).resident_bytes()).sum(),
            etcd_database: sum(etcd, "etcd_mvcc_db_total_size_in_use_in_bytes").await,
            host_resident: host.process.resident_bytes(),
        }
    }
}

fn failed(fault: impl ToString) -> Fault {
    Fault::Session { row: TITLE, fault: fault.to_string() }
}
