//! The queue of a key: who waits, in which order, and how many turns that will take.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::Mode;
use crate::requests::{Place, RequestIndex};

/// A place in a key's queue: first come, first served. Those who join a hold stand where it stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket {
    /// The place among all requests of whoever's turn it is.
    pub(crate) turn: u64,
    /// The request's own place among all requests.
    pub(crate) order: u64,
}

/// One who waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) request: RequestIndex,
    pub(crate) mode: Mode,
    pub(crate) ticket: Ticket,
    pub(crate) is_try: bool,
}

/// The waiters of a key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    live: BTreeMap<Ticket, RequestIndex>,
    passed_over: BTreeMap<Ticket, RequestIndex>,
    tries: BTreeMap<Ticket, RequestIndex>,
    exclusive: usize,
    shared: usize,
    /// The sum of 1 / limit over limited waiters, as a multiple of 1 / [`Self::WHOLE`].
    limited: u64,
    /// The largest lock delay asked for since the queue was last empty.
    pub(crate) lock_delay: Duration,
    /// The first in line has this key as far as it can have it, and waits for its further keys: the key is not given
    /// up meanwhile.
    pub(crate) pinned_by: Option<RequestIndex>,
}

impl Queue {
    const WHOLE: u64 = 1 << 20;

    pub(crate) fn len(&self) -> usize {
        self.live.len() + self.passed_over.len()
    }

    pub(crate) fn push(&mut self, entry: Entry, place: Place, lock_delay: Duration) {
        self.side(place).insert(entry.ticket, entry.request);
        if entry.is_try {
            self.tries.insert(entry.ticket, entry.request);
        }
        match entry.mode {
            Mode::Exclusive => self.exclusive += 1,
            Mode::Shared => self.shared += 1,
            Mode::Limit(limit) => self.limited += Self::WHOLE / u64::from(limit.get()),
        }
        self.lock_delay = self.lock_delay.max(lock_delay);
    }

    pub(crate) fn remove(&mut self, entry: Entry, place: Place) {
        if self.side(place).remove(&entry.ticket).is_none() {
            return;
        }
        self.tries.remove(&entry.ticket);
        match entry.mode {
            Mode::Exclusive => self.exclusive -= 1,
            Mode::Shared => self.shared -= 1,
            Mode::Limit(limit) => self.limited -= Self::WHOLE / u64::from(limit.get()),
        }
        self.pinned_by = self.pinned_by.filter(|pinner| *pinner != entry.request);
    }

    pub(crate) fn shift(&mut self, ticket: Ticket, request: RequestIndex, from: Place, to: Place) {
        self.side(from).remove(&ticket);
        self.side(to).insert(ticket, request);
    }

    /// The turns that all of these will take, when readers between two writers have theirs together, and limited
    /// holders as many at once as they may.
    pub(crate) fn turns(&self) -> usize {
        let shared = self.shared.min(self.exclusive + 1);
        let limited = usize::try_from(self.limited.div_ceil(Self::WHOLE)).unwrap_or(usize::MAX);
        self.exclusive.saturating_add(shared).saturating_add(limited)
    }

    pub(crate) fn first_live(&self) -> Option<RequestIndex> {
        self.live.first_key_value().map(|(_, request)| *request)
    }

    pub(crate) fn last_live(&self) -> Option<RequestIndex> {
        self.live.last_key_value().map(|(_, request)| *request)
    }

    pub(crate) fn first_try(&self) -> Option<RequestIndex> {
        self.tries.first_key_value().map(|(_, request)| *request)
    }

    /// The first of all, whether its turn can come or not.
    pub(crate) fn first(&self) -> Option<RequestIndex> {
        self.iter().next()
    }

    /// In the order of their coming, whether their turn can come or not.
    pub(crate) fn iter(&self) -> impl Iterator<Item = RequestIndex> {
        let mut sides = [self.live.iter().peekable(), self.passed_over.iter().peekable()];
        core::iter::from_fn(move || {
            let [live, passed_over] = &mut sides;
            match (live.peek(), passed_over.peek()) {
                (Some((first, _)), Some((second, _))) if second < first => passed_over.next(),
                (Some(_), _) => live.next(),
                (None, _) => passed_over.next(),
            }
            .map(|(_, index)| *index)
        })
    }

    #[cfg(any(test, debug_assertions, feature = "mutations"))]
    pub(crate) fn has(&self, entry: Entry, place: Place) -> bool {
        let side = if place == Place::Live { &self.live } else { &self.passed_over };
        side.get(&entry.ticket) == Some(&entry.request) && self.tries.contains_key(&entry.ticket) == entry.is_try
    }

    fn side(&mut self, place: Place) -> &mut BTreeMap<Ticket, RequestIndex> {
        match place {
            Place::Live => &mut self.live,
            Place::PassedOver => &mut self.passed_over,
        }
    }
}
