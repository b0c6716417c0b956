//! The port for people and scripts: locks without gRPC, what is locked now, and releases by force.
//!
//! A thin JSON gateway. Sessions of the API are streams of the session protocol inside the process; questions and
//! orders go to the driver as events. There is no second way to the engine.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use turnstile_core::LockKey;

use crate::config;
use crate::driver::{Answer, Backlog, Event, Question};

mod acquire;
mod audit;
mod door;
mod hex;
mod inspect;
mod listen;
mod problem;
mod query;
mod release;
mod session;
mod sessions;

use acquire::Longest;
use audit::Audit;
use problem::Problem;
use sessions::Sessions;

/// Forced releases at once.
const FORCING_MAX: usize = 16;

/// What all requests share.
#[derive(Debug)]
struct Api {
    events: mpsc::Sender<Event>,
    sessions: Sessions,
    longest: Longest,
    session_ttl: Duration,
    audit: Audit,
    forcing: Arc<Semaphore>,
}

/// An API that has what it needs, and does not serve yet.
#[derive(Debug)]
pub struct Ready {
    api: Api,
    names: door::Names,
    connections_max: usize,
}

impl Ready {
    /// Hands everything to the driver at the other end of `events`, as far as `backlog` has room.
    ///
    /// # Errors
    /// If forced releases could not be recorded.
    pub fn new(
        config: &config::Api,
        engine: &turnstile_core::Config,
        events: mpsc::Sender<Event>,
        backlog: Backlog,
    ) -> io::Result<Self> {
        let longest = Longest { wait: engine.wait_max, hold: engine.hold_max, lock_delay: engine.lock_delay_max };
        let api = Api {
            events,
            sessions: Sessions::new(backlog, config.connections_max / 2),
            longest,
            session_ttl: engine.session_ttl,
            audit: Audit::open(config.audit_file.clone())?,
            forcing: Arc::new(Semaphore::new(FORCING_MAX)),
        };
        let names = if config.insecure { door::Names::Any } else { door::Names::Local };
        Ok(Self { api, names, connections_max: config.connections_max })
    }

    /// Serves until the sender is used or dropped.
    pub fn serve(self, listener: TcpListener) -> (oneshot::Sender<()>, JoinHandle<()>) {
        let router = Router::new()
            .route("/v1/sessions", post(sessions::open))
            .route("/v1/sessions/{session}", delete(sessions::end))
            .route("/v1/sessions/{session}/heartbeats", post(sessions::heartbeat))
            .route("/v1/sessions/{session}/locks", post(sessions::acquire))
            .route("/v1/sessions/{session}/locks/{id}", delete(sessions::release))
            .route("/v1/locks", get(inspect::list))
            .route("/v1/locks/{*key}", get(inspect::one))
            .route("/v1/release", post(release::force))
            .route("/v1/audit", get(release::audit))
            .method_not_allowed_fallback(async || {
                Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", "This path does not know this method.")
            })
            .fallback(async || no_such_path())
            .layer(from_fn_with_state(self.names, door::keep))
            .with_state(Arc::new(self.api));
        listen::serve(listener, self.connections_max, router)
    }
}

impl Api {
    /// Asks the driver.
    async fn ask<T>(&self, question: Question, answer: oneshot::Receiver<T>) -> Result<T, Problem> {
        self.events.send(Event::Ask(question)).await.map_err(|_| Problem::going_away())?;
        answer.await.map_err(|_| Problem::going_away())
    }

    /// Asks what a key looks like now.
    async fn look(&self, key: LockKey, details: usize) -> Result<Answer, Problem> {
        let (reply, answer) = oneshot::channel();
        self.ask(Question::Key(key, details, reply), answer).await
    }
}

/// The variable parts of a path, percent-decoded.
#[derive(Debug)]
struct Params(RawPathParams);

impl Params {
    fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        RawPathParams::from_request_parts(parts, state).await.map(Self).map_err(|_| no_such_path())
    }
}

fn no_such_path() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "path", "There is no such path in this API.")
}

/// A body that is JSON already.
struct JsonText(String);

impl IntoResponse for JsonText {
    fn into_response(self) -> Response {
        let mut response = self.0.into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

fn json_answer(value: &Value) -> Response {
    JsonText(value.to_string()).into_response()
}
