//! The burst: many connections, each sending one deposit after the other, as fast as the answers come.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Barrier;

/// The longest time for one answer; only a broken setup needs it.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// A burst of deposits of 1.
#[derive(Clone, Debug)]
pub struct Burst {
    /// Where the deposits are sent.
    pub to: SocketAddr,
    /// Accounts, in turn.
    pub accounts: Vec<String>,
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// Deposits in all.
    pub deposits: usize,
}

/// What the client saw of a burst.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Answers by status.
    pub answers: BTreeMap<u16, usize>,
    /// Requests without an answer, by what went wrong.
    pub errors: BTreeMap<String, usize>,
    /// From the first request to the last answer.
    pub took: Duration,
    /// Time from request to answer, in microseconds.
    pub answer_us: Histogram<u64>,
    /// Time spent waiting for the lock, in microseconds, as far as answers tell it by `Server-Timing`.
    pub wait_us: Histogram<u64>,
}

impl Seen {
    fn nothing() -> Self {
        // The bounds of this histogram are right: one microsecond to two minutes, three digits.
        let histogram = || Histogram::new_with_bounds(1, 120_000_000, 3).expect("the bounds are right");
        Self {
            answers: BTreeMap::new(),
            errors: BTreeMap::new(),
            took: Duration::ZERO,
            answer_us: histogram(),
            wait_us: histogram(),
        }
    }

    /// Deposits answered with 200.
    pub fn acknowledged(&self) -> usize {
        self.answers.get(&StatusCode::OK.as_u16()).copied().unwrap_or(0)
    }

    /// Answers per second.
    pub fn rate(&self) -> f64 {
        self.answers.values().sum::<usize>() as f64 / self.took.as_secs_f64().max(1e-9)
    }

    fn add(&mut self, other: &Self) {
        for (status, count) in &other.answers {
            *self.answers.entry(*status).or_default() += count;
        }
        for (error, count) in &other.errors {
            *self.errors.entry(error.clone()).or_default() += count;
        }
        self.answer_us += &other.answer_us;
        self.wait_us += &other.wait_us;
    }
}

/// Sends the burst. All connections stand before the first request is sent.
pub async fn run(burst: &Burst) -> io::Result<Seen> {
    let next = Arc::new(AtomicUsize::new(0));
    let start = Arc::new(Barrier::new(burst.connections + 1));
    let mut senders = Vec::new();
    for _ in 0..burst.connections {
        let connection = connect(burst.to).await?;
        let (burst, next, start) = (burst.clone(), next.clone(), start.clone());
        senders.push(tokio::spawn(async move {
            start.wait().await;
            send_all(&burst, connection, &next).await
        }));
    }
    start.wait().await;
    let begun = Instant::now();
    let mut seen = Seen::nothing();
    for sender in senders {
        seen.add(&sender.await.map_err(io::Error::other)?);
    }
    seen.took = begun.elapsed();
    Ok(seen)
}

async fn send_all(burst: &Burst, connection: SendRequest<Full<Bytes>>, next: &AtomicUsize) -> Seen {
    let mut seen = Seen::nothing();
    let mut connection = Some(connection);
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= burst.deposits {
            return seen;
        }
        let Some(account) = burst.accounts.get(number % burst.accounts.len().max(1)) else { return seen };
        let result = match connection.take() {
            Some(open) => Ok(open),
            None => connect(burst.to).await,
        };
        let sent = Instant::now();
        let result = match result {
            Ok(mut open) => {
                let path = format!("/accounts/{account}/deposit");
                let answer = ask(&mut open, Method::POST, &path, burst.to).await;
                // After an error the state of the connection is unknown: the next request gets a new one.
                connection = answer.is_ok().then_some(open);
                answer
            }
            Err(error) => Err(error),
        };
        match result {
            Ok((head, _)) => {
                *seen.answers.entry(head.status().as_u16()).or_default() += 1;
                seen.answer_us.saturating_record(sent.elapsed().as_micros().try_into().unwrap_or(u64::MAX));
                if let Some(wait) = wait_in(&head) {
                    seen.wait_us.saturating_record(wait.as_micros().try_into().unwrap_or(u64::MAX));
                }
            }
            Err(error) => *seen.errors.entry(error.to_string()).or_default() += 1,
        }
    }
}

/// One GET; the status and the body.
pub async fn get(from: SocketAddr, path: &str) -> io::Result<(StatusCode, Bytes)> {
    let mut connection = connect(from).await?;
    let (head, body) = ask(&mut connection, Method::GET, path, from).await?;
    Ok((head.status(), body))
}

async fn connect(to: SocketAddr) -> io::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Its end is seen by the sender.
    tokio::spawn(connection);
    Ok(sender)
}

async fn ask(
    connection: &mut SendRequest<Full<Bytes>>,
    method: Method,
    path: &str,
    host: SocketAddr,
) -> io::Result<(Response<()>, Bytes)> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, host.to_string())
        .body(Full::default())
        .map_err(io::Error::other)?;
    let exchange = async {
        connection.ready().await?;
        let (head, body) = connection.send_request(request).await?.into_parts();
        Ok::<_, hyper::Error>((Response::from_parts(head, ()), body.collect().await?.to_bytes()))
    };
    match tokio::time::timeout(ANSWER_MAX, exchange).await {
        Ok(answer) => answer.map_err(io::Error::other),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")),
    }
}

/// The wait in `Server-Timing: turnstile;dur=12.3` (milliseconds).
fn wait_in(head: &Response<()>) -> Option<Duration> {
    let metrics = head.headers().get_all("server-timing").iter().filter_map(|value| value.to_str().ok());
    metrics.flat_map(|value| value.split(',')).find_map(|metric| {
        let mut parts = metric.split(';').map(str::trim);
        (parts.next() == Some("turnstile")).then_some(())?;
        let millis: f64 = parts.find_map(|part| part.strip_prefix("dur="))?.parse().ok()?;
        Duration::try_from_secs_f64(millis / 1e3).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: &str, expected: Option<Duration>) {
        let head = Response::builder().header("server-timing", value).body(()).unwrap();
        assert_eq!(wait_in(&head), expected, "{value}");
    }

    #[test]
    fn the_wait_is_read_from_server_timing() {
        check("turnstile;dur=12.5", Some(Duration::from_micros(12_500)));
        check("db;dur=1, turnstile;desc=\"lock\";dur=3", Some(Duration::from_millis(3)));
        check("db;dur=1", None);
        check("turnstile", None);
        check("turnstile;dur=-1", None);
    }
}
