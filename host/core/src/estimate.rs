//! When one more request would get its turn, by the holds seen so far.

use core::time::Duration;

use crate::keys::Key;
use crate::{Instant, Mode};

/// So many of a queue are looked at; a longer one is taken to go on like that.
const LOOKS: usize = 256;

/// Holds that stand beside each other, and how many more may.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// Nobody's yet.
    Open,
    Exclusive,
    Shared,
    Limited {
        holds: usize,
        smallest: usize,
    },
}

impl Turn {
    /// The turn with one more hold in it; `None` if that one must wait for the next.
    fn with(self, mode: Mode) -> Option<Self> {
        match (self, mode) {
            (Self::Open, Mode::Exclusive) => Some(Self::Exclusive),
            (Self::Open | Self::Shared, Mode::Shared) => Some(Self::Shared),
            (Self::Open, Mode::Limit(limit)) => Some(Self::Limited { holds: 1, smallest: limit.get() as usize }),
            (Self::Limited { holds, smallest }, Mode::Limit(limit)) => {
                let smallest = smallest.min(limit.get() as usize);
                (holds < smallest).then_some(Self::Limited { holds: holds + 1, smallest })
            }
            _ => None,
        }
    }
}

impl Key {
    /// How long a request in this mode would wait that came now: the rest of the quarantine, and a typical hold for
    /// every turn before its own. `None` if nothing is known.
    pub(crate) fn estimate(&self, now: Instant, mode: Mode) -> Option<Duration> {
        let turns = self.turns_before(mode);
        let holds = self.typical_hold_us.map(|us| Duration::from_micros(u64::from(us)).saturating_mul(turns));
        let lingering = if self.holders.len() == 0 { self.holders.lingers_until(mode) } else { None };
        let quarantine = self.quarantine.max(lingering).map(|until| until.saturating_since(now));
        match (holds, quarantine) {
            (None, None) => None,
            (holds, quarantine) => Some(holds.unwrap_or_default().saturating_add(quarantine.unwrap_or_default())),
        }
    }

    /// Turns that will be over before one more request has its own.
    fn turns_before(&self, mode: Mode) -> u32 {
        let mut turn = match self.holders.summary() {
            None => Turn::Open,
            Some((Mode::Exclusive, _)) => Turn::Exclusive,
            Some((Mode::Shared, _)) => Turn::Shared,
            Some((Mode::Limit(limit), holds)) => Turn::Limited { holds, smallest: limit.get() as usize },
        };
        let mut over = 0;
        let mut take = |mode| match turn.with(mode) {
            Some(joined) => turn = joined,
            None => {
                over += 1;
                turn = Turn::Open.with(mode).unwrap_or(Turn::Open);
            }
        };
        let mut looked = 0;
        for entry in self.queue.iter().flat_map(|queue| queue.in_line()).take(LOOKS) {
            take(entry.mode);
            looked += 1;
        }
        take(mode);
        let waiters = self.queue.as_ref().map_or(0, |queue| queue.in_line_len());
        u32::try_from(over * waiters.max(1) / looked.max(1)).unwrap_or(u32::MAX)
    }
}
