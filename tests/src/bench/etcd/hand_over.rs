//! How long a key takes from one host to another that waits for it, beside one write to etcd.

use std::time::{Duration, Instant};

use etcd_client::Client;
use serde::Serialize;
use turnstile_protocol::v1::Ending;

use super::hosts::start_hosts;
use super::tally::percentile_us;
use crate::bench::Fault;
use crate::etcd::Etcd;
use crate::host::Host;
use crate::http::Ask;
use crate::session_client::{Session, Want};
use crate::wait::{PATIENCE, until};

/// How often the key changes hosts in a round.
pub const HAND_OVERS: usize = 200;

/// The bar: p50 of a hand-over, in writes to etcd.
pub const WRITES_TO_REACH: f64 = 3.0;

const TITLE: &str = "hand-over between two hosts";

const KEY: &str = "default/acct:000:0000000";

/// The figures of one round.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// From the release at one host to the grant at the other, the median in microseconds.
    pub p50_us: f64,
    /// The same, the 99th percentile.
    pub p99_us: f64,
    /// One put to etcd, in turn with the hand-overs; the median in microseconds.
    pub write_p50_us: f64,
    /// The same, the 99th percentile.
    pub write_p99_us: f64,
}

impl Sample {
    /// How many writes a hand-over takes as long as.
    pub fn writes(&self) -> f64 {
        self.p50_us / self.write_p50_us
    }
}

/// One host, and a client of it.
struct Place {
    host: Host,
    session: Session,
}

/// Passes one key to and fro. The host that has it is asked for no other grant, and knows before the release that the
/// other one waits.
///
/// # Errors
/// If a request is not granted, or a write fails.
pub async fn measure(etcd: &Etcd, number: u32) -> Result<Sample, Fault> {
    let mut client = Client::connect(etcd.endpoints(), None).await.map_err(failed)?;
    let mut places = Vec::new();
    for host in start_hosts(etcd, 2, number, "handoff_grants = 0", None).await {
        let session = Session::open(host.sessions, "bench").await;
        places.push(Place { host, session });
    }
    let want = Want { key: KEY, wait: Duration::from_secs(60), lock_delay: Duration::from_secs(15) };
    let (mut took, mut writes) = (Vec::new(), Vec::new());
    let mut granted = places[0].session.acquire(want.clone()).await.map_err(|reject| failed(format!("{reject:?}")))?;
    for turn in 0..HAND_OVERS {
        let (from, to) = (&places[turn % 2], &places[(turn + 1) % 2]);
        let release = async {
            until("the owner to know that another host waits", PATIENCE, async || is_contended(&from.host).await).await;
            let start = Instant::now();
            from.session.release(&granted, Ending::Clean).await;
            start
        };
        let next = async { (to.session.acquire(want.clone()).await, Instant::now()) };
        let (start, (next, end)) = tokio::join!(release, next);
        granted = next.map_err(|reject| failed(format!("{reject:?}")))?;
        took.push(end - start);
        let start = Instant::now();
        client.put(format!("bench-{number}"), turn.to_string(), None).await.map_err(failed)?;
        writes.push(start.elapsed());
    }
    for times in [&mut took, &mut writes] {
        times.sort_unstable();
    }
    Ok(Sample {
        p50_us: percentile_us(&took, 50),
        p99_us: percentile_us(&took, 99),
        write_p50_us: percentile_us(&writes, 50),
        write_p99_us: percentile_us(&writes, 99),
    })
}

async fn is_contended(owner: &Host) -> Option<()> {
    let answer = Ask::get(&format!("/v1/locks/{KEY}")).send(owner.api).await.ok()?;
    let lock: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
    (lock["ownership"] == "contended").then_some(())
}

fn failed(fault: impl ToString) -> Fault {
    Fault::Session { row: TITLE, fault: fault.to_string() }
}
