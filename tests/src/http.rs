//! A plain HTTP client: one request on a connection of its own, or many on one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Why a request has no answer.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request.
pub type Body = BoxBody<Bytes, Fault>;

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct Ask {
    method: String,
    path: String,
    headers: Vec<(String, HeaderValue)>,
    body: Bytes,
}

/// A complete answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// The trailers, if any came.
    pub trailers: Option<HeaderMap>,
    /// From the first byte sent to the last one received.
    pub took: Duration,
}

impl Ask {
    /// A request without a body.
    pub fn new(method: &str, path: &str) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), headers: Vec::new(), body: Bytes::new() }
    }

    /// A GET.
    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// A POST.
    pub fn post(path: &str) -> Self {
        Self::new("POST", path)
    }

    /// Adds a header.
    ///
    /// # Panics
    /// If the value has a control character.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.header_bytes(name, value.as_bytes())
    }

    /// Adds a header whose value need not be text.
    ///
    /// # Panics
    /// If the value has a control character.
    pub fn header_bytes(mut self, name: &str, value: &[u8]) -> Self {
        self.headers.push((name.to_owned(), HeaderValue::from_bytes(value).expect("a header value")));
        self
    }

    /// Tells the recording upstream what to do (see `behave`).
    pub fn behave(self, behaviour: &str) -> Self {
        self.header(crate::behave::HEADER, behaviour)
    }

    /// Gives it a body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends it on an HTTP/1 connection of its own.
    ///
    /// # Errors
    /// If no complete answer came.
    pub async fn send(&self, to: SocketAddr) -> Result<Answer, Fault> {
        Connection::open(to).await?.send(self).await
    }

    /// Starts sending it; the answer is awaited later. Aborting the task closes the connection.
    pub fn spawn(&self, to: SocketAddr) -> JoinHandle<Result<Answer, Fault>> {
        let ask = self.clone();
        tokio::spawn(async move { ask.send(to).await })
    }

    fn request(&self, authority: &str) -> Request<Body> {
        let mut request = Request::builder().method(self.method.as_str()).uri(&self.path);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request = request.header("host", authority);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(self.body.clone()).map_err(|never| match never {}).boxed()).expect("a valid request")
    }
}

impl Answer {
    /// A header as text; empty if it is absent or not text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?} is no JSON", self.body))
    }
}

/// One connection, used for one request after the other. Dropping it closes it.
pub struct Connection {
    sender: Sender,
    authority: String,
    driver: JoinHandle<()>,
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Connection {
    /// Opens an HTTP/1 connection.
    ///
    /// # Errors
    /// If nobody listens.
    pub async fn open(to: SocketAddr) -> Result<Self, Fault> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move { drop(connection.with_upgrades().await) });
        Ok(Self { sender: Sender::Http1(sender), authority: to.to_string(), driver })
    }

    /// Opens an HTTP/2 connection, without asking first (prior knowledge).
    ///
    /// # Errors
    /// If nobody listens.
    pub async fn open_http2(to: SocketAddr) -> Result<Self, Fault> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender: Sender::Http2(sender), authority: to.to_string(), driver })
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// If no complete answer came.
    pub async fn send(&mut self, ask: &Ask) -> Result<Answer, Fault> {
        let start = Instant::now();
        let mut request = ask.request(&self.authority);
        if matches!(self.sender, Sender::Http2(_)) {
            // HTTP/2 carries the host in the address.
            let host = request.headers_mut().remove("host").expect("every request names its host");
            let uri = format!("http://{}{}", host.to_str()?, ask.path);
            *request.uri_mut() = uri.parse()?;
        }
        let response = self.start(request).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body: body.to_bytes(),
            trailers,
            took: start.elapsed(),
        })
    }

    /// Sends a request of any shape, and returns when the head of its answer is there.
    ///
    /// # Errors
    /// If none came.
    pub async fn start(&mut self, request: Request<Body>) -> Result<Response<hyper::body::Incoming>, Fault> {
        Ok(match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
