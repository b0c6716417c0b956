//! A host with an API, and an HTTP client that says exactly what it is told to.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use turnstile_host::config::{Config, Overrides};
use turnstile_host::service::{Host, Stopped};

/// Long enough for a loaded machine; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Heartbeats of tests that are not about sessions: none expires in them.
pub(crate) const LONG: &str = "[sessions]\nttl = \"60s\"\n[store]\nlease_ttl = \"60s\"\n";

pub(crate) struct Running {
    pub(crate) api: SocketAddr,
    pub(crate) sessions: SocketAddr,
    pub(crate) stop: oneshot::Sender<()>,
    pub(crate) stopped: JoinHandle<Stopped>,
    _directory: TempDir,
}

impl Running {
    /// With a fresh database, and `config` beyond what is needed.
    pub(crate) async fn start(config: &str) -> Self {
        Self::start_on(config, TempDir::new().unwrap()).await
    }

    /// With the database in this directory.
    pub(crate) async fn start_on(config: &str, directory: TempDir) -> Self {
        let local = Some(([127, 0, 0, 1], 0).into());
        let overrides = Overrides {
            listen: local,
            admin_listen: local,
            api_listen: local,
            database: Some(directory.path().join("locks.db")),
        };
        let config = Config::parse(config, &overrides).unwrap_or_else(|faults| panic!("{faults}"));
        let host = Host::start(config).await.unwrap();
        let (api, sessions) = (host.api_address().unwrap(), host.sessions_address());
        let (stop, stopping) = oneshot::channel();
        let stopped = tokio::spawn(host.run_until(async {
            let _ = stopping.await;
        }));
        Self { api, sessions, stop, stopped, _directory: directory }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        Ask::new("GET", path).send(self.api).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        Ask::post(path, body).send(self.api).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        Ask::new("DELETE", path).send(self.api).await
    }

    /// Opens a session, and returns its path.
    pub(crate) async fn session(&self) -> String {
        let answer = self.post("/v1/sessions", json!({ "node": "test" })).await.expect(201);
        format!("/v1/sessions/{}", answer["session"].as_str().unwrap())
    }

    /// Keeps a session alive until the task is aborted.
    pub(crate) fn beat(&self, session: &str) -> JoinHandle<()> {
        let (path, api) = (format!("{session}/heartbeats"), self.api);
        tokio::spawn(async move {
            for seq in 1_u64.. {
                Ask::post(&path, json!({ "seq": seq })).send(api).await.expect(200);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    }

    /// Takes a lock that is free.
    pub(crate) async fn take(&self, session: &str, body: Value) -> Value {
        self.post(&format!("{session}/locks"), body).await.expect(200)
    }

    /// Asks for a lock; the answer is awaited later. Aborting the task closes the connection.
    pub(crate) fn ask_for(&self, session: &str, body: Value) -> JoinHandle<Answer> {
        let (ask, api) = (Ask::post(&format!("{session}/locks"), body), self.api);
        tokio::spawn(async move { ask.send(api).await })
    }

    /// Looks at a key until it is as expected.
    pub(crate) async fn until(&self, key: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut last = None;
        let looking = async {
            loop {
                let answer = self.get(&format!("/v1/locks/{key}")).await;
                if answer.status == 200 && is_so(&answer.json()) {
                    return answer.json();
                }
                last = Some(answer);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, looking).await {
            Ok(seen) => seen,
            Err(_) => panic!("{key} never was {what}: {last:?}"),
        }
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("the host did not answer in time")
}

/// One key in exclusive mode.
pub(crate) fn lock(key: &str, wait: &str) -> Value {
    json!({ "keys": [{ "key": key }], "wait": wait, "lock_delay": "60s" })
}

/// A request.
#[derive(Clone)]
pub(crate) struct Ask {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Ask {
    pub(crate) fn new(method: &str, path: &str) -> Self {
        Self { method: method.into(), path: path.into(), headers: Vec::new(), body: Bytes::new() }
    }

    pub(crate) fn post(path: &str, body: Value) -> Self {
        Self { body: body.to_string().into(), ..Self::new("POST", path) }.header("content-type", "application/json")
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn body(self, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..self }
    }

    /// Sends it on a connection of its own.
    pub(crate) async fn send(self, to: SocketAddr) -> Answer {
        within(self.try_send(to)).await.unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    pub(crate) async fn try_send(self, to: SocketAddr) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(to).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Closed when this future is dropped.
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(connection);
        let mut request = Request::builder().method(self.method.as_str()).uri(&self.path);
        if !self.headers.iter().any(|(name, _)| name == "host") {
            request = request.header("host", to.to_string());
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let response = sender.send_request(request.body(Full::new(self.body))?).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?} is no JSON"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body of an answer with this status, which is a success.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        if status == 204 {
            assert!(self.body.is_empty(), "{self:?}");
            return Value::Null;
        }
        assert_eq!(self.header("content-type"), "application/json");
        self.json()
    }

    /// The body of a problem of this status and type.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, name: &str) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let body = self.json();
        assert_eq!(body["type"], format!("urn:turnstile:problem:{name}"), "{body}");
        assert_eq!(body["status"], status, "{body}");
        assert!(body["title"].is_string() && !body["detail"].as_str().unwrap().is_empty(), "{body}");
        let retry_after = self.header("retry-after").parse::<u64>();
        assert_eq!(retry_after.is_ok_and(|seconds| seconds > 0), status == 503, "{self:?}");
        body
    }
}
