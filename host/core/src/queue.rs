//! The queue of a key: who waits, and in which order.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::Mode;
use crate::requests::{Part, Place, RequestIndex};

/// A request's place among all requests: first come, first served.
pub(crate) type Ticket = u64;

/// One who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) request: RequestIndex,
    pub(crate) ticket: Ticket,
    pub(crate) mode: Mode,
    pub(crate) part: Part,
    pub(crate) is_try: bool,
}

/// Some of them, in the order of their coming.
#[derive(Clone, Debug, Default)]
struct Line {
    live: BTreeMap<Ticket, Entry>,
    passed_over: BTreeMap<Ticket, Entry>,
}

/// The waiters of a key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    line: Line,
    /// Those whose family has the key already: they wait for the store or the lease, and for nobody's turn.
    joining: Line,
    tries: BTreeMap<Ticket, RequestIndex>,
    /// The largest lock delay asked for since the queue was last empty.
    pub(crate) lock_delay: Duration,
    /// The first in line has this key as far as it can have it, and waits for its further keys: the key is not given
    /// up meanwhile.
    pub(crate) pinned_by: Option<RequestIndex>,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.line.len() + self.joining.len()
    }

    /// How many take turns.
    pub(crate) fn in_line_len(&self) -> usize {
        self.line.len()
    }

    pub(crate) fn push(&mut self, entry: Entry, place: Place, lock_delay: Duration) {
        self.side(entry.part, place).insert(entry.ticket, entry);
        if entry.is_try {
            self.tries.insert(entry.ticket, entry.request);
        }
        self.lock_delay = self.lock_delay.max(lock_delay);
    }

    pub(crate) fn remove(&mut self, entry: Entry, place: Place) {
        self.side(entry.part, place).remove(&entry.ticket);
        self.tries.remove(&entry.ticket);
        self.pinned_by = self.pinned_by.filter(|pinner| *pinner != entry.request);
    }

    pub(crate) fn shift(&mut self, entry: Entry, from: Place, to: Place) {
        self.side(entry.part, from).remove(&entry.ticket);
        self.side(entry.part, to).insert(entry.ticket, entry);
    }

    pub(crate) fn first_live(&self) -> Option<RequestIndex> {
        self.line.live.first_key_value().map(|(_, entry)| entry.request)
    }

    pub(crate) fn last_live(&self) -> Option<RequestIndex> {
        self.line.live.last_key_value().map(|(_, entry)| entry.request)
    }

    pub(crate) fn first_try(&self) -> Option<RequestIndex> {
        self.tries.first_key_value().map(|(_, request)| *request)
    }

    /// Those who join, and whose session is there.
    pub(crate) fn joining(&self) -> impl Iterator<Item = RequestIndex> {
        self.joining.live.values().map(|entry| entry.request)
    }

    /// The first of all, whether its turn can come or not.
    pub(crate) fn first(&self) -> Option<RequestIndex> {
        self.iter().next().map(|entry| entry.request)
    }

    /// All of them: those who join, and then in the order of their coming, whether their turn can come or not.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.joining.iter().chain(self.line.iter())
    }

    /// Those who take turns, in the order of their coming, whether their turn can come or not.
    pub(crate) fn in_line(&self) -> impl Iterator<Item = &Entry> {
        self.line.iter()
    }

    #[cfg(any(test, debug_assertions, feature = "mutations"))]
    pub(crate) fn has(&self, entry: Entry, place: Place) -> bool {
        let line = if entry.part == Part::Joins { &self.joining } else { &self.line };
        let side = if place == Place::Live { &line.live } else { &line.passed_over };
        side.get(&entry.ticket) == Some(&entry) && self.tries.contains_key(&entry.ticket) == entry.is_try
    }

    fn side(&mut self, part: Part, place: Place) -> &mut BTreeMap<Ticket, Entry> {
        let line = match part {
            Part::Bears => &mut self.line,
            Part::Joins => &mut self.joining,
        };
        match place {
            Place::Live => &mut line.live,
            Place::PassedOver => &mut line.passed_over,
        }
    }
}

impl Line {
    fn len(&self) -> usize {
        self.live.len() + self.passed_over.len()
    }

    fn iter(&self) -> impl Iterator<Item = &Entry> {
        let mut sides = [self.live.values().peekable(), self.passed_over.values().peekable()];
        core::iter::from_fn(move || {
            let [live, passed_over] = &mut sides;
            match (live.peek(), passed_over.peek()) {
                (Some(first), Some(second)) if second.ticket < first.ticket => passed_over.next(),
                (Some(_), _) => live.next(),
                (None, _) => passed_over.next(),
            }
        })
    }
}
