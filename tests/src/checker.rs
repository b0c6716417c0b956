//! Judges what the upstream recorded: was anybody in it together, and did fencing tokens always grow?

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use crate::upstream::Execution;

/// A request with one of its keys.
#[derive(Clone, Copy)]
struct Held<'e> {
    execution: &'e Execution,
    token: Option<u64>,
}

/// What a history shows.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Guarded requests that were judged.
    pub executions: usize,
    /// Keys that they were about.
    pub keys: usize,
    /// I1: two requests of one key in the upstream, both with their proxy still there. Never allowed.
    pub hold_overlaps: Vec<Fault>,
    /// Work that outlived its hold met the next holder. No lock can prevent it beyond its lock delay.
    pub orphan_overlaps: Vec<Fault>,
    /// I2: a token that was not larger than the one before it.
    pub token_faults: Vec<Fault>,
}

/// One thing that is wrong, in words.
pub struct Fault(String);

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Judges every guarded request in `executions`; those without a lock key are passed over.
pub fn judge(executions: &[Execution]) -> Verdict {
    let mut keys: BTreeMap<&str, Vec<Held<'_>>> = BTreeMap::new();
    let mut verdict = Verdict::default();
    for execution in executions {
        let locks = execution.locks();
        verdict.executions += usize::from(!locks.is_empty());
        for (key, token) in locks {
            keys.entry(key).or_default().push(Held { execution, token });
        }
    }
    verdict.keys = keys.len();
    for (key, mut held) in keys {
        held.sort_by_key(|held| held.execution.start);
        judge_key(key, &held, &mut verdict);
    }
    verdict
}

impl Verdict {
    /// Fails the test if the lock was broken in any way.
    ///
    /// # Panics
    /// If there is an overlap of holds or a token that did not grow.
    pub fn assert_safe(&self) {
        assert!(self.hold_overlaps.is_empty(), "I1 is broken: {:#?}", self.hold_overlaps);
        assert!(self.token_faults.is_empty(), "I2 is broken: {:#?}", self.token_faults);
    }

    /// As [`Verdict::assert_safe`]; nor may work that outlived its hold have met the next holder.
    ///
    /// # Panics
    /// If there is any overlap or a token that did not grow.
    pub fn assert_undisturbed(&self) {
        self.assert_safe();
        assert!(self.orphan_overlaps.is_empty(), "the lock delay was not kept: {:#?}", self.orphan_overlaps);
    }
}

fn judge_key(key: &str, history: &[Held<'_>], verdict: &mut Verdict) {
    // Sorted by start, so a request overlaps an earlier one exactly if it began before the latest end so far.
    let mut latest_hold: Option<Held<'_>> = None;
    let mut latest_work: Option<Held<'_>> = None;
    for &held in history {
        let before = |end: Option<Instant>| end.is_none_or(|end| held.execution.start < end);
        if let Some(earlier) = latest_hold.filter(|earlier| before(hold_end(earlier.execution))) {
            verdict.hold_overlaps.push(describe(key, earlier, held));
        } else if let Some(earlier) = latest_work.filter(|earlier| before(earlier.execution.end)) {
            verdict.orphan_overlaps.push(describe(key, earlier, held));
        }
        latest_hold = Some(later(latest_hold, held, hold_end));
        latest_work = Some(later(latest_work, held, |execution| execution.end));
    }
    for pair in history.windows(2) {
        if pair[0].token >= pair[1].token || pair[1].token.is_none() {
            verdict.token_faults.push(describe(key, pair[0], pair[1]));
        }
    }
}

/// When the hold behind a request was over at the latest, as seen from the upstream.
fn hold_end(execution: &Execution) -> Option<Instant> {
    match (execution.end, execution.abandoned) {
        (Some(end), Some(abandoned)) => Some(end.min(abandoned)),
        (end, abandoned) => end.or(abandoned),
    }
}

fn later<'e>(latest: Option<Held<'e>>, new: Held<'e>, end: impl Fn(&Execution) -> Option<Instant>) -> Held<'e> {
    let Some(latest) = latest else { return new };
    match (end(latest.execution), end(new.execution)) {
        (None, _) => latest,
        (Some(before), Some(after)) if after < before => latest,
        _ => new,
    }
}

fn describe(key: &str, earlier: Held<'_>, later: Held<'_>) -> Fault {
    let Held { execution: first, token: first_token } = earlier;
    let Held { execution: second, token: second_token } = later;
    let at = |instant: Option<Instant>| {
        instant.map_or_else(
            || "never".to_owned(),
            |instant| match instant.checked_duration_since(first.start) {
                Some(after) => format!("{after:?}"),
                None => "before".to_owned(),
            },
        )
    };
    Fault(format!(
        "{key}: {} {} (token {first_token:?}) began at 0, left at {}, ended at {}; {} {} (token {second_token:?}) began at {}",
        first.method,
        first.path,
        at(first.abandoned),
        at(first.end),
        second.method,
        second.path,
        at(Some(second.start)),
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::HeaderMap;

    use super::*;

    // If the checker could not see these, no end-to-end test would mean anything.

    fn execution(origin: Instant, token: u64, start: u64, abandoned: Option<u64>, end: Option<u64>) -> Execution {
        let at = |ms| origin + Duration::from_millis(ms);
        let mut headers = HeaderMap::new();
        headers.insert("x-turnstile-key", "default/k".parse().expect("a header value"));
        headers.insert("x-turnstile-token", token.to_string().parse().expect("a header value"));
        Execution {
            method: "POST".to_owned(),
            path: "/".to_owned(),
            headers,
            received: 0,
            start: at(start),
            abandoned: abandoned.map(at),
            end: end.map(at),
        }
    }

    fn counts(history: &[Execution]) -> (usize, usize, usize) {
        let verdict = judge(history);
        assert_eq!((verdict.executions, verdict.keys), (history.len(), 1));
        (verdict.hold_overlaps.len(), verdict.orphan_overlaps.len(), verdict.token_faults.len())
    }

    #[test]
    fn one_after_the_other_is_fine() {
        let now = Instant::now();
        assert_eq!(counts(&[execution(now, 1, 0, None, Some(10)), execution(now, 2, 10, None, Some(20))]), (0, 0, 0));
    }

    #[test]
    fn two_at_once_are_a_hold_overlap_even_behind_a_short_one() {
        let now = Instant::now();
        let history = [
            execution(now, 1, 0, None, Some(100)),
            execution(now, 2, 10, None, Some(20)),
            execution(now, 3, 50, None, Some(60)),
        ];
        assert_eq!(counts(&history), (2, 0, 0));
    }

    #[test]
    fn an_execution_that_never_ended_overlaps_all_that_follow() {
        let now = Instant::now();
        assert_eq!(counts(&[execution(now, 1, 0, None, None), execution(now, 2, 900, None, Some(901))]), (1, 0, 0));
    }

    #[test]
    fn work_that_outlives_its_proxy_is_an_orphan_overlap() {
        let now = Instant::now();
        let history = [execution(now, 1, 0, Some(10), Some(100)), execution(now, 2, 50, None, Some(60))];
        assert_eq!(counts(&history), (0, 1, 0));
    }

    #[test]
    fn each_of_several_keys_is_judged() {
        let now = Instant::now();
        let with = |keys: &str, tokens: &str, start, end| {
            let mut execution = execution(now, 0, start, None, Some(end));
            execution.headers.insert("x-turnstile-key", keys.parse().expect("a header value"));
            execution.headers.insert("x-turnstile-token", tokens.parse().expect("a header value"));
            execution
        };
        let faults = |history: &[Execution]| {
            let verdict = judge(history);
            assert_eq!(verdict.executions, history.len());
            (verdict.keys, verdict.hold_overlaps.len(), verdict.token_faults.len())
        };
        assert_eq!(faults(&[with("a,b", "1,5", 0, 10), with("b,a", "6,2", 10, 20), with("c", "1", 0, 9)]), (3, 0, 0));
        assert_eq!(faults(&[with("a,b", "1,5", 0, 10), with("c,b", "1,6", 5, 20)]), (3, 1, 0));
        assert_eq!(faults(&[with("a,b", "1,5", 0, 10), with("b,a", "5,2", 10, 20)]), (2, 0, 1));
        assert_eq!(faults(&[with("a,b", "1,5", 0, 10), with("a,b", "2", 10, 20)]), (2, 0, 1), "a token is missing");
    }

    #[test]
    fn tokens_must_grow() {
        let now = Instant::now();
        for second in [1, 2] {
            let history = [execution(now, 2, 0, None, Some(10)), execution(now, second, 10, None, Some(20))];
            assert_eq!(counts(&history), (0, 0, 1), "after 2 came {second}");
        }
    }
}
