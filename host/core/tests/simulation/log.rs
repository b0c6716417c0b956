//! What one history came to: its steps in words, how often what happened, and the first thing that was not allowed to.

use std::collections::BTreeMap;
use std::fmt;

use crate::clock::SECOND;

/// Something that must not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// The invariant and, in few words, what is wrong: two of a kind have the same cause, as far as one can tell.
    pub(crate) kind: String,
    pub(crate) at: u64,
    pub(crate) what: String,
}

/// A line of the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) text: String,
    /// It is said again and again, and mostly of no interest.
    pub(crate) routine: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Log {
    /// True time.
    pub(crate) now: u64,
    pub(crate) verbose: bool,
    pub(crate) lines: Vec<Line>,
    pub(crate) violation: Option<Violation>,
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

impl Log {
    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        self.add(false, what);
    }

    pub(crate) fn note_routine(&mut self, what: impl FnOnce() -> String) {
        self.add(true, what);
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Keeps the first one.
    pub(crate) fn violate(&mut self, kind: &str, what: String) {
        let violation = Violation { kind: kind.to_owned(), at: self.now, what };
        self.note(|| format!("VIOLATION {violation}"));
        self.violation.get_or_insert(violation);
    }

    fn add(&mut self, routine: bool, what: impl FnOnce() -> String) {
        if self.verbose {
            let text = format!("{} {}", Time(self.now), what());
            self.lines.push(Line { text, routine });
        }
    }
}

/// True time, as it is printed.
pub(crate) struct Time(pub(crate) u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>3}.{:06}", self.0 / SECOND, self.0 % SECOND)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (at{})", self.kind, self.what, Time(self.at))
    }
}
