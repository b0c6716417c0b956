//! What happened, and whether it was allowed to. Knows nothing of the engine's state: it judges by what clients
//! believed, what upstreams worked on, and what went in and out of the host.

use std::collections::BTreeMap;

use turnstile_core::LockKey;

use crate::clock::SECOND;

/// Somebody held a key, or worked on it, from `from` until `until` (true time).
#[derive(Clone, Debug)]
#[allow(dead_code)] // Printed.
struct Span {
    who: String,
    from: u64,
    until: Option<u64>,
}

/// Names a span while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SpanId(usize);

#[derive(Debug, Default)]
pub(crate) struct History {
    beliefs: BTreeMap<LockKey, Vec<Span>>,
    works: BTreeMap<LockKey, Vec<Span>>,
    tokens: BTreeMap<LockKey, u64>,
    /// Requests by name: how often they were begun and ended.
    requests: BTreeMap<(usize, u64), Outcome>,
    queues: BTreeMap<LockKey, Vec<Queued>>,
    violation: Option<String>,
    log: Vec<String>,
    verbose: bool,
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    ended: u32,
}

#[derive(Clone, Copy, Debug)]
struct Queued {
    session: u64,
    request: u64,
}

/// Whether a waiter may be passed over, as the host's inputs tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    Live,
    Passable,
}

impl History {
    pub(crate) fn new(verbose: bool) -> Self {
        Self { verbose, ..Self::default() }
    }

    pub(crate) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    pub(crate) fn log(&self) -> &[String] {
        &self.log
    }

    pub(crate) fn note(&mut self, now: u64, what: impl FnOnce() -> String) {
        if self.verbose {
            self.log.push(format!("{:>4}.{:06} {}", now / SECOND, now % SECOND, what()));
        }
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Keeps the first one.
    pub(crate) fn violate(&mut self, now: u64, what: String) {
        self.note(now, || format!("VIOLATION {what}"));
        if self.violation.is_none() {
            self.violation = Some(format!("at {}.{:06}: {what}", now / SECOND, now % SECOND));
        }
    }

    // I1

    pub(crate) fn believe(&mut self, now: u64, key: &LockKey, who: String) -> SpanId {
        self.note(now, || format!("{who} holds {key}"));
        open(&mut self.beliefs, now, key, who)
    }

    pub(crate) fn stop_believing(&mut self, key: &LockKey, span: SpanId, until: u64) {
        close(&mut self.beliefs, key, span, until);
    }

    pub(crate) fn work(&mut self, now: u64, key: &LockKey, who: String, until: u64) {
        let span = open(&mut self.works, now, key, who);
        close(&mut self.works, key, span, until);
    }

    /// Looks for overlaps; of work only if the lock delay covers all of it.
    pub(crate) fn judge_overlaps(&mut self, now: u64, orphans_too: bool) {
        let mut found = overlap(&self.beliefs, "hold overlap");
        if orphans_too {
            found = found.or_else(|| overlap(&self.works, "orphan overlap"));
        }
        if let Some(what) = found {
            self.violate(now, format!("I1: {what}"));
        }
    }

    // I2

    pub(crate) fn granted(&mut self, now: u64, key: &LockKey, token: u64) {
        self.count("grants");
        let last = self.tokens.insert(key.clone(), token);
        if last.is_some_and(|last| token <= last) {
            self.violate(now, format!("I2: token {token} of {key} after {last:?}"));
        }
    }

    // I4

    pub(crate) fn queued(&mut self, key: &LockKey, session: u64, request: u64) {
        let queue = self.queues.entry(key.clone()).or_default();
        if !queue.iter().any(|queued| (queued.session, queued.request) == (session, request)) {
            queue.push(Queued { session, request });
        }
    }

    pub(crate) fn left(&mut self, gone: impl Fn(u64, u64) -> bool) {
        for queue in self.queues.values_mut() {
            queue.retain(|queued| !gone(queued.session, queued.request));
        }
    }

    /// The waiter is granted: nobody live may stand before it.
    pub(crate) fn served(&mut self, now: u64, session: u64, request: u64, liveness: impl Fn(u64) -> Liveness) {
        let mut wrong = None;
        for (key, queue) in &mut self.queues {
            let Some(place) = queue.iter().position(|at| (at.session, at.request) == (session, request)) else {
                continue;
            };
            let before = queue[..place].iter().find(|ahead| liveness(ahead.session) == Liveness::Live);
            wrong = before.map(|ahead| format!("I4: {key}: {request} was granted before {ahead:?}"));
            queue.remove(place);
        }
        if let Some(wrong) = wrong {
            self.violate(now, wrong);
        }
    }

    /// A restarted host has no queues.
    pub(crate) fn queues_gone(&mut self) {
        self.queues.clear();
    }

    // I5

    pub(crate) fn asked(&mut self, client: usize, request: u64) {
        self.count("requests");
        self.requests.insert((client, request), Outcome::default());
    }

    pub(crate) fn ended(&mut self, now: u64, client: usize, request: u64, how: &'static str) {
        self.note(now, || format!("client {client} request {request} ended: {how}"));
        self.count(how);
        let outcome = self.requests.entry((client, request)).or_default();
        outcome.ended += 1;
        if outcome.ended > 1 {
            self.violate(now, format!("I5: request {request} of client {client} ended twice"));
        }
    }

    /// All is quiet, and all waits are over.
    pub(crate) fn judge_endings(&mut self, now: u64) {
        let open = self.requests.iter().find(|(_, outcome)| outcome.ended != 1).map(|(request, _)| *request);
        if let Some((client, request)) = open {
            self.violate(now, format!("I5: request {request} of client {client} was never answered"));
        }
    }
}

fn open(spans: &mut BTreeMap<LockKey, Vec<Span>>, now: u64, key: &LockKey, who: String) -> SpanId {
    let of_key = spans.entry(key.clone()).or_default();
    of_key.push(Span { who, from: now, until: None });
    SpanId(of_key.len() - 1)
}

fn close(spans: &mut BTreeMap<LockKey, Vec<Span>>, key: &LockKey, span: SpanId, until: u64) {
    if let Some(span) = spans.get_mut(key).and_then(|of_key| of_key.get_mut(span.0)) {
        span.until = Some(until.max(span.from));
    }
}

fn overlap(spans: &BTreeMap<LockKey, Vec<Span>>, what: &str) -> Option<String> {
    for (key, of_key) in spans {
        let mut ordered: Vec<&Span> = of_key.iter().collect();
        ordered.sort_by_key(|span| span.from);
        let mut latest: Option<&Span> = None;
        for span in ordered {
            if let Some(before) = latest
                && before.until.unwrap_or(u64::MAX) > span.from
            {
                return Some(format!("{what} on {key}: {before:?} and {span:?}"));
            }
            if latest.is_none_or(|before| before.until <= span.until) {
                latest = Some(span);
            }
        }
    }
    None
}
