//! The routes of people who look at locks, and how keys, holders and waiters look as JSON.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;
use turnstile_core::{
    HolderDescription, HolderId, Instant, KeyDescription, LockKey, LostReason, Mode, OwnershipDescription, SessionId,
    WaiterDescription, Who,
};

use super::problem::Problem;
use super::{Api, Params, json_answer, query};
use crate::driver::{Answer, Client, LOOKS_MAX, Listing, Question};

/// Holders, and waiters, that are shown of a single key.
const SHOWN_MAX: usize = 100;

/// Keys of a listing, if nobody says otherwise.
const LISTED: u32 = 100;

/// Bytes of a text that somebody else chose.
const TEXT_MAX_BYTES: usize = 512;

/// GET /v1/locks
pub(super) async fn list(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Problem> {
    let number = |value: &Value| value.as_str()?.parse::<u32>().ok();
    let listing = query::read(request.uri(), |section| {
        let count = |value: &Value| number(value).filter(|count| (1..=LOOKS_MAX).contains(count));
        Listing {
            prefix: section.read("prefix", "a text", |value| value.as_str().map(Into::into)).unwrap_or_default(),
            from: section.read("cursor", "the `next` of an earlier answer", number).unwrap_or(0),
            keys_max: section.read("limit", &format!("a number from 1 to {LOOKS_MAX}"), count).unwrap_or(LISTED),
            idle: section
                .read("idle", "true or false", |value| value.as_str().and_then(|text| text.parse().ok()))
                .unwrap_or(false),
        }
    })?;
    let (reply, answer) = oneshot::channel();
    let seen = api.ask(Question::Keys(listing, reply), answer).await?;
    let keys: Vec<Value> = seen.keys.iter().map(|key| show_key(key, &seen)).collect();
    let mut answer = json!({ "locks": keys });
    if let (Some(next), Some(members)) = (seen.next, answer.as_object_mut()) {
        members.insert("next".into(), next.to_string().into());
    }
    Ok(json_answer(&answer))
}

/// GET /v1/locks/{key}
pub(super) async fn one(State(api): State<Arc<Api>>, params: Params) -> Result<Response, Problem> {
    let key = LockKey::parse(params.get("key"));
    let key = key.map_err(|_| not_tracked("What follows /v1/locks/ is no lock key."))?;
    let seen = api.look(key, SHOWN_MAX).await?;
    let key = seen.keys.first().ok_or_else(|| {
        not_tracked("This host knows nothing of this key: nobody holds it here or waits for it. (Another host may.)")
    })?;
    Ok(json_answer(&show_key(key, &seen)))
}

pub(super) fn not_tracked(detail: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no-such-lock", detail)
}

fn show_key(key: &KeyDescription, seen: &Answer) -> Value {
    let mut shown = json!({
        "key": key.key.as_str(),
        "ownership": match key.ownership {
            OwnershipDescription::None => "none",
            OwnershipDescription::Claiming => "claiming",
            OwnershipDescription::Queued => "queued",
            OwnershipDescription::Owned => "owned",
            OwnershipDescription::Contended => "contended",
        },
        "holders": show_holders(&key.holders, &seen.clients, seen.now),
        "holder_count": key.holder_count,
        "waiters": key.waiters.iter().map(|waiter| show_waiter(waiter, seen)).collect::<Vec<_>>(),
        "waiter_count": key.waiter_count,
    });
    if let Some(members) = shown.as_object_mut() {
        if let Some(until) = key.quarantined_until {
            members.insert("quarantined_for_ms".into(), millis_until(seen.now, until));
        }
        if let Some(token) = key.last_token {
            members.insert("last_token".into(), token.as_u64().into());
        }
    }
    shown
}

/// Holders of one key, as they are shown and recorded.
pub(super) fn show_holders<'a>(
    holders: impl IntoIterator<Item = &'a HolderDescription>,
    clients: &HashMap<SessionId, Client>,
    now: Instant,
) -> Vec<Value> {
    let show = |holder: &HolderDescription| {
        let mut shown = show_request(holder.holder, holder.mode, holder.who.as_ref(), clients);
        shown.insert("token".into(), holder.token.as_u64().into());
        shown.insert("held_ms".into(), millis_until(holder.since, now));
        shown.insert("hold_left_ms".into(), millis_until(now, holder.limit));
        if !holder.joined.is_empty() {
            let joined = holder.joined.iter().map(|joined| Value::Object(show_client(*joined, clients)));
            shown.insert("joined".into(), joined.collect());
        }
        if let Some((reason, until)) = holder.ending {
            let ending = json!({ "reason": lost_reason(reason), "within_ms": millis_until(now, until) });
            shown.insert("ending".into(), ending);
        }
        Value::Object(shown)
    };
    holders.into_iter().map(show).collect()
}

fn show_waiter(waiter: &WaiterDescription, seen: &Answer) -> Value {
    let mut shown = show_request(waiter.holder, waiter.mode, waiter.who.as_ref(), &seen.clients);
    shown.insert("waited_ms".into(), millis(waiter.waited));
    shown.insert("wait_left_ms".into(), millis_until(seen.now, waiter.deadline));
    shown.insert("live".into(), waiter.live.into());
    Value::Object(shown)
}

/// Whose request it is.
fn show_client(holder: HolderId, clients: &HashMap<SessionId, Client>) -> Map<String, Value> {
    let mut shown = Map::new();
    // As text, and as it stands in the logs: not every reader of JSON has numbers of 64 bits.
    shown.insert("session".into(), holder.session.0.to_string().into());
    shown.insert("id".into(), holder.request.0.into());
    if let Some(client) = clients.get(&holder.session) {
        shown.insert("node".into(), show_text(&client.node));
        shown.insert("worker".into(), show_text(&client.worker));
    }
    shown
}

fn show_request(
    holder: HolderId,
    mode: Mode,
    who: Option<&Who>,
    clients: &HashMap<SessionId, Client>,
) -> Map<String, Value> {
    let mut shown = show_client(holder, clients);
    let (name, limit) = match mode {
        Mode::Exclusive => ("exclusive", None),
        Mode::Shared => ("shared", None),
        Mode::Limit(limit) => ("limit", Some(limit)),
    };
    shown.insert("mode".into(), name.into());
    if let Some(limit) = limit {
        shown.insert("limit".into(), limit.get().into());
    }
    if let Some(who) = who {
        let Who { method, path, route, request_id, client } = who;
        let texts =
            [("method", method), ("path", path), ("route", route), ("request_id", request_id), ("client", client)];
        let told = texts.into_iter().filter(|(_, text)| !text.is_empty());
        let who: Map<String, Value> = told.map(|(name, text)| (name.into(), show_text(text))).collect();
        shown.insert("who".into(), who.into());
    }
    shown
}

fn show_text(text: &str) -> Value {
    if text.len() <= TEXT_MAX_BYTES {
        return text.into();
    }
    let cut = text.get(..text.floor_char_boundary(TEXT_MAX_BYTES)).unwrap_or_default();
    format!("{cut}...").into()
}

fn lost_reason(reason: LostReason) -> &'static str {
    match reason {
        LostReason::HoldLimit => "hold-limit",
        LostReason::Forced => "forced",
        LostReason::Lease => "lease",
        LostReason::Unknown => "unknown",
    }
}

fn millis_until(from: Instant, until: Instant) -> Value {
    millis(until.saturating_since(from))
}

fn millis(duration: std::time::Duration) -> Value {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).into()
}
