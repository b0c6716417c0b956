//! The routes of lock users: sessions, their heartbeats, and their locks.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use turnstile_protocol::{NAME_MAX_BYTES, VERSION, v1};

use super::acquire::Asked;
use super::hex::{from_hex, to_hex};
use super::listen::Peer;
use super::problem::Problem;
use super::session::{Outcome, Released, Session};
use super::{Api, Params, door, json_answer, query};
use crate::driver::Backlog;

/// What names a session in a URL. Not the session's own id: people see that one in logs and when they look at a lock,
/// and whoever knows this one is taken for the session.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Bearer([u8; 16]);

/// All live sessions of the API.
#[derive(Debug)]
pub(super) struct Sessions {
    backlog: Backlog,
    live: Mutex<HashMap<Bearer, Arc<Session>>>,
    /// Requests that may wait for locks: others, such as heartbeats and releases, must find a connection.
    waits: Arc<Semaphore>,
}

impl Sessions {
    pub(super) fn new(backlog: Backlog, waits_max: usize) -> Self {
        Self { backlog, live: Mutex::default(), waits: Arc::new(Semaphore::new(waits_max)) }
    }

    fn find(&self, params: &Params) -> Result<Arc<Session>, Problem> {
        let bearer = Bearer::parse(params.get("session")).ok_or_else(Problem::no_such_session)?;
        self.live().get(&bearer).cloned().ok_or_else(Problem::no_such_session)
    }

    fn live(&self) -> MutexGuard<'_, HashMap<Bearer, Arc<Session>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bearer {
    fn random() -> Result<Self, Problem> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|_| Problem::unavailable("The host has no randomness for a session."))?;
        Ok(Self(bytes))
    }

    fn parse(text: &str) -> Option<Self> {
        from_hex(text)?.try_into().ok().map(Self)
    }
}

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bearer(..)")
    }
}

/// POST /v1/sessions
pub(super) async fn open(
    State(api): State<Arc<Api>>,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
) -> Result<Response, Problem> {
    let expected = format!("a text of 1 to {NAME_MAX_BYTES} bytes");
    let node = door::read(request, |section| {
        let is_name = |text: &&str| !text.is_empty() && text.len() <= NAME_MAX_BYTES;
        let node = section.read("node", &expected, |value| value.as_str().filter(is_name).map(str::to_owned));
        Some(node.unwrap_or_else(|| "api".into()))
    })
    .await?;
    let hello = v1::Hello {
        protocol_version: VERSION,
        node,
        worker: worker(peer),
        generation: 1,
        // Before the first heartbeat, which has number 1 at least.
        heartbeat_seq: 0,
        resume: None,
    };
    let bearer = Bearer::random()?;
    let (session, welcome, inbound) = Session::open(hello, api.events.clone(), &api.sessions.backlog).await?;
    api.sessions.live().insert(bearer, Arc::clone(&session));
    let all = Arc::clone(&api);
    tokio::spawn(async move {
        session.run(inbound).await;
        all.sessions.live().remove(&bearer);
    });
    let name = to_hex(&bearer.0);
    let answer = json!({
        "session": name,
        "incarnation": welcome.incarnation,
        "ttl_ms": welcome.ttl_ms,
        "heartbeat_ms": welcome.heartbeat_ms,
        "heartbeat_seq": 0,
    });
    Ok((StatusCode::CREATED, [(LOCATION, format!("/v1/sessions/{name}"))], json_answer(&answer)).into_response())
}

/// A worker's name that tells people where the session came from.
fn worker(peer: Option<SocketAddr>) -> String {
    peer.map_or_else(|| "api".into(), |peer| format!("api from {peer}"))
}

/// DELETE /v1/sessions/{session}
pub(super) async fn end(State(api): State<Arc<Api>>, params: Params) -> Result<StatusCode, Problem> {
    let session = api.sessions.find(&params)?;
    if session.end().await { Ok(StatusCode::NO_CONTENT) } else { Err(session.over()) }
}

/// POST /v1/sessions/{session}/heartbeats
pub(super) async fn heartbeat(
    State(api): State<Arc<Api>>,
    params: Params,
    request: Request,
) -> Result<Response, Problem> {
    let seq = door::read(request, |section| {
        section.required("seq", "a whole number above 0", |value| value.as_u64().filter(|seq| *seq > 0))
    })
    .await?;
    let beat = api.sessions.find(&params)?.heartbeat(seq).await?;
    let lost: Vec<Value> =
        beat.lost.into_iter().map(|(id, reason)| json!({ "id": id, "reason": lost_reason(reason) })).collect();
    Ok(json_answer(&json!({
        "seq": beat.ack.seq,
        "valid_ms": beat.ack.valid_ms,
        "lost": lost,
        "draining": beat.draining,
    })))
}

/// POST /v1/sessions/{session}/locks
pub(super) async fn acquire(
    State(api): State<Arc<Api>>,
    params: Params,
    request: Request,
) -> Result<Response, Problem> {
    let asked = door::read(request, |section| Asked::read(section, api.longest)).await?;
    let session = api.sessions.find(&params)?;
    let _wait = api.sessions.waits.try_acquire().map_err(|_| {
        Problem::busy("As many requests wait for locks through this port as may (half of its connections).")
    })?;
    let keys: Vec<String> = asked.acquire.keys.iter().map(|key| key.key.clone()).collect();
    match session.acquire(asked).await?.outcome().await {
        Outcome::Granted(grant) => Ok(json_answer(&granted(&grant, &keys))),
        Outcome::Rejected(reject) => Err(Problem::rejected(&reject)),
        Outcome::Withdrawn => {
            let detail = "Another request of this session took this one back.";
            Err(Problem::new(StatusCode::CONFLICT, "withdrawn", detail))
        }
        Outcome::Over => Err(session.over()),
    }
}

fn granted(grant: &v1::Grant, keys: &[String]) -> Value {
    let keys = keys.iter().zip(&grant.keys);
    let keys: Vec<Value> =
        keys.map(|(key, grant)| json!({ "key": key, "token": grant.token, "barrier": grant.barrier })).collect();
    let mut answer = json!({
        "id": grant.id,
        "keys": keys,
        "waited_ms": grant.waited_ms,
        "heartbeat_seq": grant.heartbeat_seq,
        "valid_ms": grant.valid_ms,
    });
    if !grant.holder_secret.is_empty()
        && let Some(members) = answer.as_object_mut()
    {
        members.insert("holder_secret".into(), to_hex(&grant.holder_secret).into());
    }
    answer
}

/// DELETE /v1/sessions/{session}/locks/{id}
pub(super) async fn release(
    State(api): State<Arc<Api>>,
    params: Params,
    request: Request,
) -> Result<StatusCode, Problem> {
    let ending = query::read(request.uri(), |section| {
        section.read("ending", "clean, unclean or unsent", |value| match value.as_str()? {
            "clean" => Some(v1::Ending::Clean),
            "unclean" => Some(v1::Ending::Unclean),
            "unsent" => Some(v1::Ending::Unsent),
            _ => None,
        })
    })?;
    let session = api.sessions.find(&params)?;
    let no_such_lock = |detail: &str| Problem::new(StatusCode::NOT_FOUND, "no-such-lock", detail);
    let not_held = "This session neither holds a lock of this id nor waits for one.";
    let id = params.get("id").parse().map_err(|_| no_such_lock(not_held))?;
    match session.release(id, ending.unwrap_or(v1::Ending::Clean)).await? {
        Released::Now => Ok(StatusCode::NO_CONTENT),
        Released::Lost(reason) => {
            let detail = "This lock was lost before; the host knows now that it was let go.";
            Err(no_such_lock(detail).with("lost", lost_reason(reason)))
        }
        Released::Unknown => Err(no_such_lock(not_held)),
    }
}

fn lost_reason(reason: v1::LostReason) -> &'static str {
    match reason {
        v1::LostReason::HoldLimit => "hold-limit",
        v1::LostReason::Forced => "forced",
        v1::LostReason::Lease => "lease",
        v1::LostReason::Unknown | v1::LostReason::Unspecified => "unknown",
    }
}
