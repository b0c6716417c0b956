//! Many clients at once, and what became of their requests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::http::{Answer, Ask, Connection, Fault};

/// Makes the request of a number.
pub type MakeRequest = dyn Fn(usize) -> Ask + Send + Sync;

/// What became of all requests.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many answers there were of each status.
    pub statuses: BTreeMap<u16, usize>,
    /// When a request was answered with another status than 200, and what the answer's body says: one line each.
    pub refusals: Vec<(Instant, String)>,
    /// Requests without a complete answer, and why.
    pub faults: Vec<String>,
    /// From sending to the end of the answer, in increasing order; of answers with status 200 only.
    pub latencies: Vec<Duration>,
    /// Of these, the time spent waiting for locks as far as answers tell it (`Server-Timing`), in increasing order.
    pub waits: Vec<Duration>,
}

impl Outcome {
    /// How many requests were answered with `status`.
    pub fn count(&self, status: u16) -> usize {
        self.statuses.get(&status).copied().unwrap_or_default()
    }

    /// The latency below which this share (0 to 1) of the good answers lay.
    ///
    /// # Panics
    /// If there was no good answer.
    pub fn quantile(&self, share: f64) -> Duration {
        quantile(&self.latencies, share).expect("there was a good answer")
    }

    /// Fails the test unless all `requests` were answered with 200.
    ///
    /// # Panics
    /// If not.
    pub fn assert_all_ok(&self, requests: usize) {
        let good = self.count(200);
        assert!(
            good == requests,
            "{good} of {requests} requests went well; statuses {:?}, faults {:?}",
            self.statuses,
            self.faults
        );
    }

    fn note(&mut self, result: Result<Answer, Fault>) {
        match result {
            Ok(answer) => {
                *self.statuses.entry(answer.status).or_default() += 1;
                if answer.status == 200 {
                    self.latencies.push(answer.took);
                    self.waits.extend(wait_in(&answer));
                } else {
                    let body = String::from_utf8_lossy(&answer.body);
                    self.refusals.push((Instant::now(), format!("{} {body}", answer.status)));
                }
            }
            Err(fault) => self.faults.push(fault.to_string()),
        }
    }

    /// Adds what became of other requests. Latencies are sorted again by who reads them.
    pub fn merge(&mut self, other: Self) {
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.refusals.extend(other.refusals);
        self.faults.extend(other.faults);
        self.latencies.extend(other.latencies);
        self.waits.extend(other.waits);
    }
}

/// The value below which this share (0 to 1) of `sorted` lies.
pub fn quantile(sorted: &[Duration], share: f64) -> Option<Duration> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((share * last as f64).round() as usize).copied()
}

/// The wait that `Server-Timing: turnstile;dur=MILLISECONDS` tells.
fn wait_in(answer: &Answer) -> Option<Duration> {
    let metrics = answer.headers.get_all("server-timing").iter().filter_map(|value| value.to_str().ok());
    metrics.flat_map(|value| value.split(',')).find_map(|metric| {
        let millis = metric.trim().strip_prefix("turnstile;")?.split(';').find_map(|part| part.strip_prefix("dur="))?;
        Duration::try_from_secs_f64(millis.parse::<f64>().ok()? / 1e3).ok()
    })
}

/// A load that is running.
pub struct Load {
    clients: JoinSet<Outcome>,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
}

impl Load {
    /// Starts `connections` clients, spread over `proxies`; together they send the requests 0 to `requests` - 1.
    /// Every client sends its next request when the last one is answered, and connects again after a fault.
    pub fn start(
        proxies: &[SocketAddr],
        connections: usize,
        requests: usize,
        make: impl Fn(usize) -> Ask + Send + Sync + 'static,
    ) -> Self {
        let make: Arc<MakeRequest> = Arc::new(make);
        let next = Arc::new(AtomicUsize::new(0));
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut clients = JoinSet::new();
        for client in 0..connections {
            let proxy = proxies[client % proxies.len()];
            let (make, next, stop, done) = (make.clone(), next.clone(), stop.clone(), done.clone());
            clients.spawn(async move {
                let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|number| *number < requests);
                let take = || {
                    if stop.load(Ordering::Relaxed) { None } else { take() }
                };
                run_client(proxy, take, &*make, &done).await
            });
        }
        Self { clients, stop, done }
    }

    /// Waits until this many requests have an answer or a fault.
    pub async fn reached(&self, requests: usize) {
        let what = format!("{requests} requests to be answered");
        crate::wait::until(&what, Duration::from_secs(60), async || {
            (self.done.load(Ordering::Relaxed) >= requests).then_some(())
        })
        .await;
    }

    /// How many requests have an answer or a fault.
    pub fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// Sends no new requests from now on.
    pub fn wind_down(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Sends no new requests from now on, and waits for the ones under way.
    pub async fn stop(self) -> Outcome {
        self.wind_down();
        self.finish().await
    }

    /// Waits until all requests have an answer or a fault.
    pub async fn finish(self) -> Outcome {
        let mut total = Outcome::default();
        for outcome in self.clients.join_all().await {
            total.merge(outcome);
        }
        total.latencies.sort_unstable();
        total.waits.sort_unstable();
        total
    }
}

async fn run_client(
    proxy: SocketAddr,
    take: impl Fn() -> Option<usize>,
    make: &MakeRequest,
    done: &AtomicUsize,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut connection: Option<Connection> = None;
    while let Some(number) = take() {
        let result = send(&mut connection, proxy, &make(number)).await;
        if result.is_err() {
            connection = None;
        }
        if !result.as_ref().is_ok_and(|answer| answer.status == 200) {
            // Who is turned away must not ask again in a tight loop.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        outcome.note(result);
        done.fetch_add(1, Ordering::Relaxed);
    }
    outcome
}

async fn send(connection: &mut Option<Connection>, proxy: SocketAddr, ask: &Ask) -> Result<Answer, Fault> {
    let open = match connection {
        Some(open) => open,
        None => connection.insert(Connection::open(proxy).await?),
    };
    open.send(ask).await
}
