//! The legacy bank: a parent that starts worker processes on one listening socket, as old servers do. A deposit reads
//! the balance from a file, works a while, and writes it back. It knows nothing of its neighbours.
//!
//! - `POST /accounts/{id}/deposit`, body `{"amount": 5}` or empty for 1
//! - `GET /accounts/{id}`
//! - `GET /stats`: what the journal says, by account

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::process::{Signal, set_parent_process_death_signal};
use serde_json::{Value, json};
use turnstile_protocol::headers;

use super::journal::{self, Journal};
use super::ledger::{AccountId, Ledger};
use super::stop::Stop;

/// The largest request body, in bytes.
const BODY_MAX: usize = 4096;

/// How often the parent looks whether its workers live.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How to run the bank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where balances and the journal are.
    pub data: PathBuf,
    /// How many processes serve.
    pub workers: usize,
    /// How long a deposit works between reading and writing.
    pub work: Duration,
}

/// Runs the parent: starts the workers, says on stdout where they listen, and ends when it is told to (SIGTERM or
/// Ctrl-C) or when a worker ends. No worker is left then.
pub fn run_parent(options: &Options) -> io::Result<()> {
    std::fs::create_dir_all(&options.data)?;
    let listener = TcpListener::bind(options.listen)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // From here on a signal does not end us before the workers.
    let stop = runtime.block_on(async { Stop::listen() })?;
    let mut workers = (0..options.workers).map(|_| start_worker(options, &listener)).collect::<io::Result<Vec<_>>>()?;
    println!("legacy-bank listens on {} with {} worker processes", listener.local_addr()?, options.workers);
    let result = runtime.block_on(watch(&mut workers, stop));
    for worker in &mut workers {
        worker.kill()?;
        worker.wait()?;
    }
    result
}

async fn watch(workers: &mut [Child], mut stop: Stop) -> io::Result<()> {
    loop {
        tokio::select! {
            () = stop.asked() => return Ok(()),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        for worker in workers.iter_mut() {
            if let Some(status) = worker.try_wait()? {
                return Err(io::Error::other(format!("worker {} ended with {status}", worker.id())));
            }
        }
    }
}

/// A worker is this program again, with the listening socket as its stdin.
fn start_worker(options: &Options, listener: &TcpListener) -> io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(["--worker-of", &std::process::id().to_string(), "--work-us", &options.work.as_micros().to_string()])
        .arg("--data")
        .arg(&options.data)
        .stdin(Stdio::from(OwnedFd::from(listener.try_clone()?)))
        .stdout(Stdio::null())
        .spawn()
}

/// Runs a worker whose stdin is the listening socket; it ends with its parent.
pub fn run_worker(options: &Options, parent: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    if std::os::unix::process::parent_id() != parent {
        return Err(io::Error::other("the parent is gone already"));
    }
    let listener = TcpListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    let teller = Arc::new(Teller {
        ledger: Ledger::open(&options.data)?,
        journal: Journal::open(&options.data)?,
        data: options.data.clone(),
        work: options.work,
        executions: AtomicU64::new(0),
    });
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(listener, teller))
}

async fn serve(listener: TcpListener, teller: Arc<Teller>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let teller = teller.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let teller = teller.clone();
                async move { Ok::<_, Infallible>(teller.answer(request).await) }
            });
            // A client that goes away in the middle is its own business.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// What a worker process has.
struct Teller {
    ledger: Ledger,
    journal: Journal,
    data: PathBuf,
    work: Duration,
    executions: AtomicU64,
}

impl Teller {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match (request.method(), segments.as_slice()) {
            (&Method::POST, ["accounts", account, "deposit"]) => match AccountId::parse(account) {
                Some(account) => self.take_deposit(account, request).await,
                None => reply(StatusCode::BAD_REQUEST, &json!({ "error": "no such account name" })),
            },
            (&Method::GET, ["accounts", account]) => match AccountId::parse(account)
                .map(|account| self.ledger.read(&account))
            {
                Some(Ok(Some(balance))) => reply(StatusCode::OK, &json!({ "account": account, "balance": balance })),
                Some(Err(error)) => broken(&error),
                Some(Ok(None)) | None => reply(StatusCode::NOT_FOUND, &json!({ "error": "no such account" })),
            },
            (&Method::GET, ["stats"]) => match journal::read(&self.data) {
                Ok(accounts) => reply(
                    StatusCode::OK,
                    &accounts.iter().map(|(name, account)| (name.clone(), stats(account))).collect(),
                ),
                Err(error) => broken(&error),
            },
            _ => reply(StatusCode::NOT_FOUND, &json!({ "error": "no such page" })),
        }
    }

    async fn take_deposit(self: Arc<Self>, account: AccountId, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let token =
            request.headers().get(headers::TOKEN).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let amount = match Limited::new(request.into_body(), BODY_MAX).collect().await {
            Ok(body) => amount_in(&body.to_bytes()),
            Err(_) => None,
        };
        let Some(amount) = amount else {
            return reply(
                StatusCode::BAD_REQUEST,
                &json!({ "error": "the body must be {\"amount\": NUMBER} or empty" }),
            );
        };
        let name = account.as_str().to_owned();
        // On a thread of its own, which goes on even if the client does not wait for it.
        match tokio::task::spawn_blocking(move || self.deposit(&account, amount, token.as_deref())).await {
            Ok(Ok(balance)) => reply(StatusCode::OK, &json!({ "account": name, "balance": balance })),
            Ok(Err(error)) => broken(&error),
            Err(error) => broken(&error),
        }
    }

    /// The legacy code: read, work, write.
    fn deposit(&self, account: &AccountId, amount: i64, token: Option<&str>) -> io::Result<i64> {
        let execution = format!("{}-{}", std::process::id(), self.executions.fetch_add(1, Ordering::Relaxed));
        self.journal.begin(&execution, account.as_str(), token)?;
        let balance = self.ledger.read(account)?.unwrap_or(0);
        std::thread::sleep(self.work);
        let balance = balance.checked_add(amount).ok_or_else(|| io::Error::other("too much money"))?;
        self.ledger.write(account, balance, &execution)?;
        self.journal.end(&execution)?;
        Ok(balance)
    }
}

fn amount_in(body: &[u8]) -> Option<i64> {
    if body.is_empty() {
        return Some(1);
    }
    serde_json::from_slice::<Value>(body).ok()?.get("amount")?.as_i64()
}

fn stats(account: &journal::Account) -> Value {
    json!({
        "executions": account.executions,
        "unfinished": account.unfinished,
        "overlaps": account.overlaps,
        "at_once_max": account.at_once_max,
        "tokens_missing": account.tokens_missing,
        "tokens_not_rising": account.tokens_not_rising,
    })
}

fn broken(error: &dyn std::error::Error) -> Response<Full<Bytes>> {
    reply(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": error.to_string() }))
}

fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}
