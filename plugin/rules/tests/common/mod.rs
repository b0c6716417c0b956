//! Requests and decisions as the tables of the tests write them.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::expect_used, clippy::panic, reason = "clippy does not see that these helpers are tests")]

use std::borrow::Cow;

use turnstile_rules::{Decision, FilterConfig, HeaderValues, Mode, RequestView, RuleSet};

/// A request in plain parts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: Vec<u8>,
    pub(crate) authority: Vec<u8>,
    pub(crate) path: Vec<u8>,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
}

impl Request {
    /// From `METHOD [HOST]TARGET`; the target begins at the first slash.
    pub(crate) fn new(text: &str) -> Self {
        let (method, rest) = text.split_once(' ').expect("METHOD [HOST]TARGET");
        let slash = rest.find('/').unwrap_or(0);
        Self::raw(method, &rest[..slash], &rest[slash..])
    }

    pub(crate) fn raw(method: impl AsRef<[u8]>, authority: impl AsRef<[u8]>, path: impl AsRef<[u8]>) -> Self {
        Self {
            method: method.as_ref().to_vec(),
            authority: authority.as_ref().to_vec(),
            path: path.as_ref().to_vec(),
            headers: Vec::new(),
        }
    }

    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }
}

impl RequestView for Request {
    fn method(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.method)
    }

    fn authority(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.authority)
    }

    fn path(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.path)
    }

    fn header(&self, name: &str) -> HeaderValues<'_> {
        let mut values = self.headers.iter().filter(|(header, _)| header == name);
        match (values.next(), values.next()) {
            (None, _) => HeaderValues::Absent,
            (Some((_, value)), None) => HeaderValues::One(Cow::Borrowed(value)),
            (Some(_), Some(_)) => HeaderValues::Several,
        }
    }
}

/// The rules of these lines, in the namespace "default".
pub(crate) fn rules(lines: &[&str]) -> RuleSet {
    let values: Vec<serde_json::Value> = lines.iter().map(|line| (*line).into()).collect();
    let json =
        turnstile_rules::filter_config_json("host", "default", &values).unwrap_or_else(|faults| panic!("{faults}"));
    FilterConfig::parse(json.as_bytes()).expect("just checked").rules
}

/// A decision as a word: `-` for unguarded, the keys (with a mode that is not exclusive behind its key), or `! ` and the
/// public text of the refusal.
pub(crate) fn outcome(rules: &RuleSet, request: &Request) -> String {
    match rules.decide(request) {
        Decision::Unguarded => "-".to_owned(),
        Decision::Guarded { keys, .. } => keys.iter().map(|(key, mode)| word(key, mode)).collect::<Vec<_>>().join(","),
        Decision::Refused { fault, .. } => format!("! {fault}"),
    }
}

fn word(key: &str, mode: Mode) -> String {
    let key = key.strip_prefix("default/").expect("the namespace");
    match mode {
        Mode::Exclusive => key.to_owned(),
        Mode::Shared => format!("{key} shared"),
        Mode::Limit(limit) => format!("{key} limit:{limit}"),
    }
}
