//! Every deadline of the engine but one (idle keys end in the order of their list), soonest first.

use std::collections::BTreeSet;

use crate::keys::KeyIndex;
use crate::requests::RequestIndex;
use crate::{Instant, SessionId};

/// What has come when its instant has come. Of those due at one instant, the first in this list goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The client of a hold that was told `Lost` has stopped believing in it.
    PromiseOver(RequestIndex),
    /// A key may be granted again.
    QuarantineOver(KeyIndex),
    /// One of a key's holds that ended uncleanly does not count any more.
    LingeringOver(KeyIndex),
    /// A session may have gone silent; its heartbeats do not move this timer, it looks again.
    SessionSilent(SessionId),
    /// A hold has lasted as long as it may.
    HoldLimit(RequestIndex),
    /// A waiter has waited as long as it may.
    WaitOver(RequestIndex),
    /// The time of a contended key's handoff budget is up.
    BudgetOver(KeyIndex),
}

/// An ordered set: removal is exact, so that a timer never outlives what it is about and indices can be reused.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timers {
    set: BTreeSet<(Instant, Timer)>,
}

impl Timers {
    pub(crate) fn set(&mut self, at: Instant, timer: Timer) {
        self.set.insert((at, timer));
    }

    pub(crate) fn clear(&mut self, at: Instant, timer: Timer) {
        self.set.remove(&(at, timer));
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.set.first().map(|(at, _)| *at)
    }

    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        self.set.pop_first().map(|(_, timer)| timer)
    }

    #[cfg(any(test, debug_assertions, feature = "mutations"))]
    pub(crate) fn has(&self, at: Instant, timer: Timer) -> bool {
        self.set.contains(&(at, timer))
    }

    #[cfg(any(test, debug_assertions, feature = "mutations"))]
    pub(crate) fn len(&self) -> usize {
        self.set.len()
    }
}
