//! `turnstile locks` and `turnstile release`: the host's API, for an operator at a terminal.

use std::fmt::Write;
use std::io;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::http_client;

/// Keys asked for at once.
const PAGE: u32 = 1_000;

/// Where a host's API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiUrl {
    authority: String,
    host: String,
    port: u16,
}

/// A URL that is none of an API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected http://HOST:PORT, such as http://127.0.0.1:7880")]
pub struct NoApiUrl;

/// What the host did not do.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// It does not answer.
    #[error("no answer from http://{authority}: {error}\nIs the host running, and is this its API (api.listen)?")]
    Unreachable {
        /// Where it should be.
        authority: String,
        /// The system's word.
        error: io::Error,
    },
    /// It refused.
    #[error("refused ({status}): {detail}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The host's word.
        detail: String,
    },
    /// It is none.
    #[error("http://{0} does not answer as a host's API does: {1}")]
    Strange(String, String),
    /// Nobody reads what is shown any more.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// A release by force.
#[derive(Clone, Debug)]
pub struct Release {
    /// Of this key.
    pub key: String,
    /// Only the hold with this token.
    pub token: Option<u64>,
    /// Who orders it.
    pub by: String,
    /// And why.
    pub reason: String,
    /// The key is free at once.
    pub skip_lock_delay: bool,
}

impl std::str::FromStr for ApiUrl {
    type Err = NoApiUrl;

    fn from_str(url: &str) -> Result<Self, NoApiUrl> {
        let uri: hyper::Uri = url.parse().map_err(|_| NoApiUrl)?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or(NoApiUrl)?;
        if uri.scheme_str() != Some("http") || uri.path() != "/" || uri.query().is_some() {
            return Err(NoApiUrl);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { authority: authority.to_string(), host, port: authority.port_u16().unwrap_or(80) })
    }
}

impl ApiUrl {
    /// Describes every key whose name begins with `prefix` and that is held, waited for or in quarantine; with `idle`
    /// those as well that the host merely owns. Each page is shown as it comes.
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub async fn locks(
        &self,
        prefix: &str,
        idle: bool,
        mut show: impl FnMut(&str) -> io::Result<()>,
    ) -> Result<(), OperatorError> {
        let mut cursor = Some("0".to_owned());
        while let Some(from) = cursor {
            let prefix = encoded(prefix);
            let path = format!("/v1/locks?limit={PAGE}&idle={idle}&cursor={from}&prefix={prefix}");
            let page: Page = self.ask("GET", &path, None).await?;
            let mut text = String::new();
            page.locks.iter().for_each(|lock| lock.describe(&mut text));
            show(&text)?;
            cursor = page.next;
        }
        Ok(())
    }

    /// Ends holds, and says whose.
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub async fn release(&self, release: &Release) -> Result<String, OperatorError> {
        let Release { key, token, by, reason, skip_lock_delay } = release;
        let lock_delay = if *skip_lock_delay { "skip" } else { "keep" };
        let mut body = json!({ "key": key, "by": by, "reason": reason, "lock_delay": lock_delay });
        if let (Some(token), Some(members)) = (token, body.as_object_mut()) {
            members.insert("token".into(), (*token).into());
        }
        let told: Told = self.ask("POST", "/v1/release", Some(body.to_string())).await?;
        let mut text = String::new();
        if told.holders.is_empty() {
            text.push_str("nobody held it; its quarantine is lifted\n");
        }
        for holder in &told.holders {
            text.push_str("told ");
            holder.describe(&mut text);
        }
        if told.within_ms > 0 {
            let _ = writeln!(text, "over within {} at the latest", seconds(told.within_ms));
        }
        if !told.all {
            text.push_str("there are more: repeat this to tell the next ones\n");
        }
        Ok(text)
    }

    async fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        method: &str,
        path: &str,
        json: Option<String>,
    ) -> Result<T, OperatorError> {
        let (status, body) = http_client::ask((self.host.as_str(), self.port), &self.authority, method, path, json)
            .await
            .map_err(|error| OperatorError::Unreachable { authority: self.authority.clone(), error })?;
        let strange = |problem: String| OperatorError::Strange(self.authority.clone(), problem);
        if status == 200 {
            return serde_json::from_slice(&body).map_err(|error| strange(error.to_string()));
        }
        let problem = serde_json::from_slice::<Value>(&body).ok();
        match problem.as_ref().and_then(|problem| problem.get("detail")?.as_str()) {
            Some(detail) => Err(OperatorError::Refused { status, detail: printable(detail) }),
            None => Err(strange(format!("status {status}"))),
        }
    }
}

#[derive(Deserialize)]
struct Page {
    locks: Vec<Lock>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Told {
    holders: Vec<Holder>,
    all: bool,
    within_ms: u64,
}

#[derive(Deserialize)]
struct Lock {
    key: String,
    ownership: String,
    holders: Vec<Holder>,
    holder_count: usize,
    waiters: Vec<Waiter>,
    waiter_count: usize,
    quarantined_for_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Holder {
    token: u64,
    held_ms: u64,
    hold_left_ms: u64,
    ending: Option<Ending>,
    #[serde(flatten)]
    request: Request,
}

#[derive(Deserialize)]
struct Ending {
    reason: String,
    within_ms: u64,
}

#[derive(Deserialize)]
struct Waiter {
    waited_ms: u64,
    wait_left_ms: u64,
    live: bool,
    #[serde(flatten)]
    request: Request,
}

#[derive(Deserialize)]
struct Request {
    #[serde(default)]
    node: String,
    #[serde(default)]
    worker: String,
    mode: String,
    limit: Option<u32>,
    #[serde(default)]
    who: Who,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Who {
    method: String,
    path: String,
    route: String,
    request_id: String,
    client: String,
}

impl Lock {
    fn describe(&self, text: &mut String) {
        let key = printable(&self.key);
        let _ = write!(text, "{key}: {}", printable(&self.ownership));
        let _ = write!(text, ", {} held, {} waiting", self.holder_count, self.waiter_count);
        if let Some(left) = self.quarantined_for_ms {
            let _ = write!(text, ", in quarantine for {}", seconds(left));
        }
        text.push('\n');
        for holder in &self.holders {
            text.push_str("  held by ");
            holder.describe(text);
        }
        for waiter in &self.waiters {
            text.push_str("  waiting: ");
            waiter.describe(text);
        }
        let shown = (self.holders.len(), self.waiters.len());
        if shown != (self.holder_count, self.waiter_count) {
            text.push_str("  and more\n");
        }
    }
}

impl Holder {
    fn describe(&self, text: &mut String) {
        self.request.describe(text);
        let Self { token, held_ms, hold_left_ms, .. } = self;
        let _ = write!(text, ", token {token}, for {}, {} left", seconds(*held_ms), seconds(*hold_left_ms));
        if let Some(Ending { reason, within_ms }) = &self.ending {
            let _ = write!(text, ", ending ({}) within {}", printable(reason), seconds(*within_ms));
        }
        text.push('\n');
    }
}

impl Waiter {
    fn describe(&self, text: &mut String) {
        self.request.describe(text);
        let _ = write!(text, ", for {}, {} left", seconds(self.waited_ms), seconds(self.wait_left_ms));
        text.push_str(if self.live { "\n" } else { ", not connected\n" });
    }
}

impl Request {
    fn describe(&self, text: &mut String) {
        text.push_str(&printable(&self.node));
        if !self.worker.is_empty() {
            let _ = write!(text, "/{}", printable(&self.worker));
        }
        let _ = write!(text, " {}", printable(&self.mode));
        if let Some(limit) = self.limit {
            let _ = write!(text, " {limit}");
        }
        let Who { method, path, route, request_id, client } = &self.who;
        let told = [method, path, route, request_id, client].into_iter().filter(|part| !part.is_empty());
        let told: Vec<String> = told.map(|part| printable(part)).collect();
        if !told.is_empty() {
            let _ = write!(text, " ({})", told.join(" "));
        }
    }
}

/// Texts that others chose must not work on the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char }).collect()
}

fn seconds(millis: u64) -> String {
    format!("{}.{}s", millis / 1_000, millis % 1_000 / 100)
}

/// Percent-encodes all that has a meaning in a query, or might.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            encoded.push(byte.into());
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_understood_or_refused() {
        for (url, expected) in [
            ("http://127.0.0.1:7880", Some(("127.0.0.1:7880", "127.0.0.1", 7880))),
            ("http://[::1]:7880/", Some(("[::1]:7880", "::1", 7880))),
            ("http://localhost", Some(("localhost", "localhost", 80))),
            ("https://127.0.0.1:7880", None),
            ("127.0.0.1:7880", None),
            ("http://127.0.0.1:7880/v1", None),
            ("http://ann@127.0.0.1", None),
        ] {
            let parsed = url.parse::<ApiUrl>().ok();
            let parts = parsed.as_ref().map(|url| (url.authority.as_str(), url.host.as_str(), url.port));
            assert_eq!(parts, expected, "{url}");
        }
    }

    #[test]
    fn what_others_chose_does_not_reach_the_terminal_raw() {
        let lock = json!({
            "key": "default/a", "ownership": "owned", "holder_count": 1, "waiter_count": 2, "last_token": 7,
            "quarantined_for_ms": 1_250,
            "holders": [{ "session": "1", "id": 1, "mode": "limit", "limit": 4, "token": 7, "held_ms": 90,
                          "hold_left_ms": 60_000, "node": "e\u{1b}[2J", "worker": "0",
                          "ending": { "reason": "forced", "within_ms": 999 },
                          "who": { "method": "POST", "path": "/p\n" } }],
            "waiters": [{ "session": "2", "id": 1, "mode": "shared", "waited_ms": 10, "wait_left_ms": 5_000,
                          "live": false, "node": "n", "worker": "" }],
        });
        let lock: Lock = serde_json::from_value(lock).unwrap();
        let mut text = String::new();
        lock.describe(&mut text);
        let expected = "default/a: owned, 1 held, 2 waiting, in quarantine for 1.2s\n\
                        \x20 held by e\u{fffd}[2J/0 limit 4 (POST /p\u{fffd}), token 7, for 0.0s, 60.0s left, \
                        ending (forced) within 0.9s\n\
                        \x20 waiting: n shared, for 0.0s, 5.0s left, not connected\n\
                        \x20 and more\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_prefix_is_encoded() {
        assert_eq!(encoded("default/a:b c&%+é"), "default/a:b%20c%26%25%2B%C3%A9");
    }
}
