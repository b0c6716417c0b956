//! Whether this process was frozen, and how long deadlines have to wait for what lies in the sockets meanwhile.

use std::time::Duration;

use turnstile_core::Instant;

/// The driver turns this often at least: a sleep does not count suspended time, but deadlines do.
pub(super) const TURN_MAX: Duration = Duration::from_secs(1);

/// A turn that comes later than it should by more than this means that we were frozen.
const FREEZE: Duration = Duration::from_millis(500);

/// After a freeze, what waits in the sockets is heard for this long before deadlines are acted on.
const GRACE: Duration = Duration::from_millis(250);

/// When deadlines may be acted on. One grace at most goes before each time they are: a host that is frozen again and
/// again, or merely slow, still lets time take its course.
#[derive(Debug)]
pub(super) struct Freezes {
    last_turn: Instant,
    grace_until: Option<Instant>,
}

/// What a turn is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// Deadlines are acted on.
    pub(super) deadlines: bool,
    /// We were frozen before it, for this long.
    pub(super) frozen_for: Option<Duration>,
}

impl Freezes {
    pub(super) fn new(now: Instant) -> Self {
        Self { last_turn: now, grace_until: None }
    }

    /// A turn begins.
    pub(super) fn turn(&mut self, now: Instant) -> Turn {
        let gap = now.saturating_since(self.last_turn);
        self.last_turn = now;
        let frozen_for = (gap > TURN_MAX + FREEZE).then_some(gap);
        if frozen_for.is_some() && self.grace_until.is_none() {
            self.grace_until = Some(now + GRACE);
        }
        let deadlines = self.grace_until.is_none_or(|until| until <= now);
        if deadlines {
            self.grace_until = None;
        }
        Turn { deadlines, frozen_for }
    }

    /// How long the driver may sleep when the next deadline is `deadline`.
    pub(super) fn sleep(&self, now: Instant, deadline: Option<Instant>) -> Duration {
        let deadline = deadline.map(|deadline| self.grace_until.map_or(deadline, |until| until.max(deadline)));
        deadline.map_or(TURN_MAX, |deadline| deadline.saturating_since(now).min(TURN_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACT: Turn = Turn { deadlines: true, frozen_for: None };

    fn at(millis: u64) -> Instant {
        Instant::from_micros(millis * 1_000)
    }

    fn frozen(millis: u64, deadlines: bool) -> Turn {
        Turn { deadlines, frozen_for: Some(Duration::from_millis(millis)) }
    }

    #[test]
    fn a_freeze_gives_the_sockets_a_grace() {
        let mut freezes = Freezes::new(at(0));
        assert_eq!(freezes.turn(at(1_500)), ACT);
        assert_eq!(freezes.turn(at(9_000)), frozen(7_500, false));
        let waiting = Turn { deadlines: false, frozen_for: None };
        assert_eq!(freezes.turn(at(9_249)), waiting);
        assert_eq!(freezes.turn(at(9_250)), ACT);
        assert_eq!(freezes.turn(at(9_251)), ACT);
    }

    #[test]
    fn a_host_that_is_always_late_acts_on_every_other_turn() {
        let mut freezes = Freezes::new(at(0));
        for turn in 1..=10 {
            assert_eq!(freezes.turn(at(turn * 2_000)), frozen(2_000, turn % 2 == 0), "turn {turn}");
        }
    }

    #[test]
    fn the_driver_wakes_when_the_grace_is_over() {
        let mut freezes = Freezes::new(at(0));
        assert_eq!(freezes.sleep(at(0), None), TURN_MAX);
        assert_eq!(freezes.sleep(at(0), Some(at(300))), Duration::from_millis(300));
        assert_eq!(freezes.sleep(at(0), Some(at(3_000))), TURN_MAX);
        freezes.turn(at(5_000));
        assert_eq!(freezes.sleep(at(5_000), Some(at(300))), GRACE);
        assert_eq!(freezes.sleep(at(5_000), None), TURN_MAX);
    }
}
