//! The recording upstream: an application that is not safe under concurrency, and writes down who was in it when.
//!
//! Like a real application it goes on working when the proxy has gone away; the record tells both instants.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use turnstile_protocol::headers;

use crate::behave::{Behaviour, Finish, HEADER};
use crate::http::{Ask, Fault};
use crate::wait::PATIENCE;

/// One request as the upstream saw it.
#[derive(Clone, Debug)]
pub struct Execution {
    /// The method.
    pub method: String,
    /// The path and query.
    pub path: String,
    /// Every header.
    pub headers: HeaderMap,
    /// Bytes of body read.
    pub received: u64,
    /// When its head arrived.
    pub start: Instant,
    /// When the proxy went away before the answer was complete.
    pub abandoned: Option<Instant>,
    /// When the upstream's work on it was done.
    pub end: Option<Instant>,
}

impl Execution {
    /// The lock key that the filter put on it; several are joined by commas.
    pub fn key(&self) -> Option<&str> {
        self.headers.get(headers::KEY)?.to_str().ok()
    }

    /// The fencing token that the filter put on it; the first one if it has several keys.
    ///
    /// # Panics
    /// If the header is there but is no list of numbers.
    pub fn token(&self) -> Option<u64> {
        self.tokens().first().copied()
    }

    /// Every key that the filter put on it, with its token.
    ///
    /// # Panics
    /// If there is a token too many.
    pub fn locks(&self) -> Vec<(&str, Option<u64>)> {
        let keys: Vec<&str> = self.key().map(|keys| keys.split(',').collect()).unwrap_or_default();
        let tokens = self.tokens();
        assert!(tokens.len() <= keys.len(), "{tokens:?} for {keys:?}");
        let tokens = tokens.into_iter().map(Some).chain(std::iter::repeat(None));
        keys.into_iter().zip(tokens).collect()
    }

    fn tokens(&self) -> Vec<u64> {
        let values: Vec<_> = self.headers.get_all(headers::TOKEN).iter().collect();
        assert!(values.len() < 2, "{} came {} times", headers::TOKEN, values.len());
        let Some(value) = values.first() else { return Vec::new() };
        let text = value.to_str().expect("a token is text");
        let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text:?} is no token"));
        text.split(',').map(number).collect()
    }
}

/// A running upstream.
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    record: Arc<Record>,
    server: tokio::task::JoinHandle<()>,
}

struct Record {
    executions: Mutex<Vec<Execution>>,
    changed: watch::Sender<()>,
}

impl Upstream {
    /// Starts an upstream on a free port.
    ///
    /// # Panics
    /// If no port can be bound.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port can be bound");
        let address = listener.local_addr().expect("a listener has an address");
        let record = Arc::new(Record { executions: Mutex::default(), changed: watch::Sender::new(()) });
        let server = tokio::spawn(accept(listener, Arc::clone(&record)));
        Self { address, record, server }
    }

    /// Everything seen so far, in the order of arrival.
    pub fn executions(&self) -> Vec<Execution> {
        self.record.lock().clone()
    }

    /// How many requests were seen so far.
    pub fn count(&self) -> usize {
        self.record.lock().len()
    }

    /// Shows everything but the first `skip` requests, and returns how many were seen so far.
    pub fn look(&self, skip: usize, look: impl FnMut(&Execution)) -> usize {
        let executions = self.record.lock();
        executions.iter().skip(skip).for_each(look);
        executions.len()
    }

    /// The requests for one path, in the order of arrival.
    pub fn of_path(&self, path: &str) -> Vec<Execution> {
        self.record.lock().iter().filter(|execution| execution.path == path).cloned().collect()
    }

    /// Waits until the record satisfies `enough`.
    ///
    /// # Panics
    /// If it never does.
    pub async fn saw(&self, what: &str, mut enough: impl FnMut(&[Execution]) -> bool) {
        let mut changes = self.record.changed.subscribe();
        let look = async {
            while !enough(&self.record.lock()) {
                changes.changed().await.expect("the record outlives the upstream");
            }
        };
        let result = tokio::time::timeout(PATIENCE, look).await;
        assert!(result.is_ok(), "the upstream never saw {what}");
    }

    /// Waits until a request for `path` has arrived.
    pub async fn began(&self, path: &str) {
        self.saw(path, |executions| executions.iter().any(|execution| execution.path == path)).await;
    }

    /// Waits until the proxy has gone away from the request for `path`.
    pub async fn was_abandoned(&self, path: &str) {
        let gone = |execution: &Execution| execution.path == path && execution.abandoned.is_some();
        self.saw(&format!("the proxy leave {path}"), |executions| executions.iter().any(gone)).await;
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Record {
    fn lock(&self) -> MutexGuard<'_, Vec<Execution>> {
        self.executions.lock().expect("no thread panics with the record in its hands")
    }

    fn begin(&self, request: &Request<Incoming>) -> usize {
        let mut executions = self.lock();
        executions.push(Execution {
            method: request.method().to_string(),
            path: request.uri().path_and_query().map_or_else(|| request.uri().to_string(), ToString::to_string),
            headers: request.headers().clone(),
            received: 0,
            start: Instant::now(),
            abandoned: None,
            end: None,
        });
        let ticket = executions.len() - 1;
        drop(executions);
        self.changed.send_replace(());
        ticket
    }

    fn change(&self, ticket: usize, change: impl FnOnce(&mut Execution)) {
        change(&mut self.lock()[ticket]);
        self.changed.send_replace(());
    }

    fn end(&self, ticket: usize) {
        self.change(ticket, |execution| execution.end = Some(Instant::now()));
    }

    /// The work is done that goes on without its proxy. If the proxy is there, an answer follows and ends it.
    fn worked(&self, ticket: usize, done: &AtomicBool) {
        let executions = self.lock();
        done.store(true, Ordering::Relaxed);
        let orphaned = executions[ticket].abandoned.is_some();
        drop(executions);
        if orphaned {
            self.end(ticket);
        }
    }
}

/// Notes that the proxy went away, unless told that all went well: hyper drops the work on a request when its
/// connection is closed.
struct Presence {
    record: Arc<Record>,
    ticket: usize,
    answered: bool,
    /// Whether nothing is left that goes on without the proxy. Read and changed with the record locked.
    work_done: Arc<AtomicBool>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        self.record.change(self.ticket, |execution| {
            execution.abandoned = Some(Instant::now());
            if self.work_done.load(Ordering::Relaxed) {
                execution.end = execution.abandoned;
            }
        });
    }
}

type Reply = Response<BoxBody<Bytes, Fault>>;

async fn accept(listener: TcpListener, record: Arc<Record>) {
    while let Ok((stream, _)) = listener.accept().await {
        let record = Arc::clone(&record);
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let service = service_fn(|request| serve(Arc::clone(&record), request));
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = connection.with_upgrades().await;
        });
    }
}

async fn serve(record: Arc<Record>, mut request: Request<Incoming>) -> Result<Reply, Fault> {
    let ticket = record.begin(&request);
    let text = request.headers().get(HEADER).map(|value| value.to_str().expect("a behaviour is text").to_owned());
    let mut behaviour = Behaviour::parse(text.as_deref().unwrap_or_default());
    let work_done = Arc::new(AtomicBool::new(true));
    let mut presence =
        Presence { record: Arc::clone(&record), ticket, answered: false, work_done: Arc::clone(&work_done) };
    if request.headers().contains_key("upgrade") {
        presence.answered = true;
        return Ok(echo(record, ticket, request));
    }
    if !behaviour.early && read_body(&record, ticket, request.body_mut()).await.is_err() {
        record.end(ticket);
        return Err("the request broke off".into());
    }
    // The work is a task of its own: it goes on when the proxy has gone away.
    let (delay, never) = (behaviour.delay, behaviour.finish == Finish::Never);
    let work_record = Arc::clone(&record);
    work_done.store(false, Ordering::Relaxed);
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        if never {
            std::future::pending::<()>().await;
        }
        work_record.worked(ticket, &work_done);
    })
    .await?;
    if let Some(path) = &behaviour.call {
        behaviour.status = call_back(&request, path).await?;
    }
    Ok(match behaviour.finish {
        Finish::CutBeforeHead => {
            record.end(ticket);
            presence.answered = true;
            return Err("cut before the head, as asked".into());
        }
        _ => answer(presence, &behaviour, request),
    })
}

/// Posts to the proxy that the request came from, as a part of the work on it; returns the status of the answer.
async fn call_back(request: &Request<Incoming>, path: &str) -> Result<u16, Fault> {
    let proxy: SocketAddr = request.headers()["host"].to_str()?.parse()?;
    let call = Ask::post(path);
    let call = match request.headers().get(headers::HOLDER) {
        Some(secret) => call.header_bytes(headers::HOLDER, secret.as_bytes()),
        None => call,
    };
    Ok(call.send(proxy).await?.status)
}

async fn read_body(record: &Record, ticket: usize, body: &mut Incoming) -> Result<(), Fault> {
    while let Some(frame) = body.frame().await {
        let bytes = frame?.data_ref().map_or(0, Bytes::len);
        // Not through `change`: a large upload would wake every watcher for each frame.
        record.lock()[ticket].received += bytes as u64;
    }
    Ok(())
}

fn answer(mut presence: Presence, behaviour: &Behaviour, request: Request<Incoming>) -> Reply {
    let status = StatusCode::from_u16(behaviour.status).expect("a status code");
    let empty = behaviour.body == 0 || request.method() == "HEAD" || matches!(behaviour.status, 204 | 304);
    let plain = behaviour.finish == Finish::Complete && behaviour.parts == 1 && behaviour.pause.is_zero();
    let mut reply = Response::builder().status(status);
    if behaviour.finish == Finish::Trailers {
        reply = reply.header("trailer", "x-end");
    }
    if let Some(location) = &behaviour.location {
        reply = reply.header("location", location);
    }
    let body = if empty || plain {
        presence.answered = true;
        presence.record.end(presence.ticket);
        let body = if empty { Bytes::new() } else { Bytes::from(vec![b'x'; behaviour.body]) };
        Full::new(body).map_err(|never| match never {}).boxed()
    } else {
        let (frames, body) = mpsc::channel(1);
        tokio::spawn(produce(frames, presence, behaviour.clone()));
        StreamBody::new(ReceiverStream::new(body)).boxed()
    };
    reply.body(body).expect("a valid response")
}

/// Long enough for what was sent before to be on its way, when a connection is to be cut in the middle.
const BEFORE_CUT: Duration = Duration::from_millis(100);

/// Sends the body part by part; the work goes on when nobody reads.
async fn produce(frames: mpsc::Sender<Result<Frame<Bytes>, Fault>>, mut presence: Presence, behaviour: Behaviour) {
    let part = Bytes::from(vec![b'x'; behaviour.body.div_ceil(behaviour.parts as usize)]);
    let work = async {
        for _ in 0..behaviour.parts {
            tokio::time::sleep(behaviour.pause).await;
            let _ = frames.send(Ok(Frame::data(part.clone()))).await;
        }
    };
    tokio::pin!(work);
    let left = tokio::select! {
        () = &mut work => false,
        () = frames.closed() => true,
    };
    if left {
        presence.record.change(presence.ticket, |execution| execution.abandoned = Some(Instant::now()));
        work.await;
    }
    presence.answered = true;
    presence.record.end(presence.ticket);
    match behaviour.finish {
        Finish::CutInBody => {
            tokio::time::sleep(BEFORE_CUT).await;
            let _ = frames.send(Err("cut in the body, as asked".into())).await;
        }
        Finish::Trailers => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-end", "reached".parse().expect("a header value"));
            let _ = frames.send(Ok(Frame::trailers(trailers))).await;
        }
        _ => {}
    }
}

/// What closes an upgraded connection from the upstream's side.
pub const CLOSE: &[u8] = b"\x88\x00";

/// Agrees to any upgrade and sends back what it gets, until the other side closes or asks for it with [`CLOSE`].
fn echo(record: Arc<Record>, ticket: usize, request: Request<Incoming>) -> Reply {
    let protocol = request.headers()["upgrade"].clone();
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
            let mut buffer = vec![0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer).await {
                if buffer[..count].ends_with(CLOSE) || writer.write_all(&buffer[..count]).await.is_err() {
                    break;
                }
            }
            let _ = writer.shutdown().await;
        }
        record.end(ticket);
    });
    let reply = Response::builder().status(101).header("upgrade", protocol).header("connection", "upgrade");
    reply.body(Empty::new().map_err(|never| match never {}).boxed()).expect("a valid response")
}

/// An upstream that answers whatever it reads with the same bytes, which need not be HTTP, and closes the connection.
///
/// # Panics
/// If no port can be bound.
pub async fn fixed_answer(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port can be bound");
    let address = listener.local_addr().expect("a listener has an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_fixed(stream, bytes));
        }
    });
    address
}

async fn answer_fixed(mut stream: TcpStream, bytes: &'static [u8]) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match tokio::time::timeout(Duration::from_secs(5), stream.read_u8()).await {
            Ok(Ok(byte)) => head.push(byte),
            _ => return,
        }
    }
    let _ = stream.write_all(bytes).await;
}
