//! The routes of operators: ending holds by force, and the record of who did so.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use turnstile_core::{Epoch, ForcedDelay, HolderDescription, LockKey, Token};

use super::audit::Record;
use super::inspect::{not_tracked, show_holders};
use super::listen::Peer;
use super::problem::Problem;
use super::{Api, door, json_answer, query};
use crate::driver::{DETAILS_MAX, ForceRelease, Forced, Question, Target};
use crate::fields::Section;
use crate::wire::to_millis;

/// The longest name of an operator, and the longest reason, in bytes.
const BY_MAX_BYTES: usize = 128;
const REASON_MAX_BYTES: usize = 1_024;

/// An operator's order, as it came.
#[derive(Debug)]
struct Order {
    key: LockKey,
    token: Option<Token>,
    by: String,
    reason: String,
    delay: ForcedDelay,
}

impl Order {
    fn read(section: &mut Section<'_>) -> Option<Self> {
        let key = section.required("key", "a lock key", |value| LockKey::parse(value.as_str()?).ok());
        let token = section.read("token", "a token of the key", |value| token(value.as_u64()?));
        let delay = section.read("lock_delay", "\"keep\" or \"skip\"", |value| match value.as_str()? {
            "keep" => Some(ForcedDelay::Keep),
            "skip" => Some(ForcedDelay::Skip),
            _ => None,
        });
        let by = read_text(section, "by", BY_MAX_BYTES);
        let reason = read_text(section, "reason", REASON_MAX_BYTES);
        Some(Self { key: key?, token, by: by?, reason: reason?, delay: delay.unwrap_or(ForcedDelay::Keep) })
    }
}

/// A text of one line, for the record.
fn read_text(section: &mut Section<'_>, name: &'static str, max_bytes: usize) -> Option<String> {
    let expected = format!("a text of 1 to {max_bytes} bytes without control characters");
    let is_line =
        |text: &&str| !text.trim().is_empty() && text.len() <= max_bytes && !text.chars().any(char::is_control);
    section.required(name, &expected, |value| value.as_str().filter(is_line).map(str::to_owned))
}

fn token(number: u64) -> Option<Token> {
    let sequence = u32::try_from(number & u64::from(Token::SEQUENCE_MAX)).ok()?;
    Token::new(Epoch(number >> Token::SEQUENCE_BITS), sequence)
}

/// POST /v1/release
pub(super) async fn force(
    State(api): State<Arc<Api>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Response, Problem> {
    let order = door::read(request, Order::read).await?;
    let turn = Arc::clone(&api.forcing).try_acquire_owned();
    let turn = turn.map_err(|_| Problem::busy("As many releases are being forced as may at once."))?;
    // What was recorded is carried out, whether its client is still there or not.
    let forcing = tokio::spawn(async move {
        let _turn = turn;
        carry_out(&api, order, peer).await
    });
    forcing.await.map_err(|_| Problem::internal("The release was not carried out."))?
}

async fn carry_out(api: &Api, order: Order, peer: Peer) -> Result<Response, Problem> {
    let Order { key, token, by, reason, delay } = order;
    let seen = api.look(key.clone(), DETAILS_MAX).await?;
    let found = seen.keys.first();
    let is_meant = |holder: &&HolderDescription| token.is_none_or(|token| holder.token == token);
    let holders: Vec<&HolderDescription> = found.iter().flat_map(|key| &key.holders).filter(is_meant).collect();
    let lifts_quarantine =
        delay == ForcedDelay::Skip && token.is_none() && found.is_some_and(|key| key.quarantined_until.is_some());
    if holders.is_empty() && !lifts_quarantine {
        let detail = match token {
            Some(_) => "No hold of this key has this token here (any more).",
            None => "Nobody holds this key here.",
        };
        return Err(not_tracked(detail));
    }
    let seen_tokens = || holders.iter().map(|holder| holder.token).collect();
    let target = token.map_or_else(|| Target::Key(seen_tokens()), Target::Hold);
    let shown_all = token.is_some() || found.is_none_or(|key| key.holders.len() == key.holder_count);
    let shown = show_holders(holders, &seen.clients, seen.now);
    let record = Record {
        time: SystemTime::now(),
        peer: peer.0,
        by: &by,
        reason: &reason,
        key: key.as_str(),
        lock_delay: if delay == ForcedDelay::Skip { "skip" } else { "keep" },
        holders: &shown,
    };
    if let Err(error) = api.audit.record(&record).await {
        tracing::error!(%error, "a forced release is refused: it cannot be recorded");
        let detail = "The release cannot be recorded (api.audit_file), so it is not carried out.";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no-audit", detail));
    }
    let (reply, answer) = oneshot::channel();
    let order = ForceRelease { key: key.clone(), target, delay };
    match api.ask(Question::ForceRelease(order, reply), answer).await? {
        Forced::Told { tokens, quarantined: true } if tokens.is_empty() => {
            let detail = "The quarantine stays: it covers work of a host that died, which nobody here knows of.";
            Err(Problem::new(StatusCode::CONFLICT, "quarantine", detail))
        }
        Forced::Told { tokens, .. } => {
            let holders = told(&shown, &tokens);
            // No promise is longer: so long do holders keep the lock that do not let go.
            let within_ms = if holders.is_empty() { 0 } else { to_millis(api.session_ttl) };
            let answer = json!({ "key": key.as_str(), "holders": holders, "all": shown_all, "within_ms": within_ms });
            Ok(json_answer(&answer))
        }
        Forced::Changed => {
            let detail = "The holds that were meant had ended when the release was carried out; nobody was told.";
            Err(Problem::new(StatusCode::CONFLICT, "changed", detail))
        }
    }
}

/// Those holders whose tokens are among `tokens`.
fn told<'a>(shown: &'a [Value], tokens: &[Token]) -> Vec<&'a Value> {
    let is_told = |holder: &&Value| {
        let token = holder.get("token").and_then(Value::as_u64);
        tokens.iter().any(|told| Some(told.as_u64()) == token)
    };
    shown.iter().filter(is_told).collect()
}

/// GET /v1/audit
pub(super) async fn audit(State(api): State<Arc<Api>>, request: Request) -> Result<Response, Problem> {
    query::read(request.uri(), |_| ())?;
    let body = format!("{{\"records\":[{}]}}", api.audit.newest_first().join(","));
    Ok(super::JsonText(body).into_response())
}
