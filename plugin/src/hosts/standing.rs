//! Whether the host of one cluster is there: up, suspected or away. Pure state: it is shown signs, and remembers.
//!
//! A host that was away is up again only after it has been steadily there for a while, and for longer each time, so
//! that one that comes and goes does not drag requests to and fro.

use core::fmt;
use core::time::Duration;

use crate::clock::Instant;
use crate::session::Sign;

/// A host that was away must have answered for so long before it gets its keys back.
pub(super) const STEADY_FIRST: Duration = Duration::from_secs(2);
/// One that did not stay for [`CALM`] must answer for twice as long the next time, up to this.
pub(super) const STEADY_LAST: Duration = Duration::from_secs(60);
/// A host that was up for so long begins anew.
pub(super) const CALM: Duration = Duration::from_secs(120);

/// Where one host stands with this worker.
#[derive(Debug)]
pub(super) struct Standing {
    state: State,
    /// How long the host must be steady to be up again.
    steady: Duration,
    /// When it came back last.
    returned: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It answers, or nothing speaks against it yet. `met`: there was a session that lived.
    Up { met: bool },
    /// Its stream broke; it is given one try to resume, and must then be steady.
    Suspected { greeted: Option<Instant> },
    /// Others are asked in its place.
    Away { greeted: Option<Instant> },
}

/// What became of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is away from now on.
    Left(Absence),
    /// It is up again.
    Returned,
}

/// Why a host counts as away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// It cannot be reached, or does not answer.
    Unreachable,
    /// It said that it goes away.
    Leaving,
    /// It answers, but has no lease in its store, or cannot use it otherwise, and so can grant nothing.
    Unable,
}

impl Change {
    /// Whether it happens without anything being wrong.
    pub fn is_in_order(self) -> bool {
        matches!(self, Self::Left(Absence::Leaving) | Self::Returned)
    }
}

/// What the host does.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Left(Absence::Unreachable) => "is away",
            Self::Left(Absence::Leaving) => "goes away",
            Self::Left(Absence::Unable) => "cannot use its store",
            Self::Returned => "is back",
        })
    }
}

impl Default for Standing {
    /// Of a host that nothing is known about.
    fn default() -> Self {
        Self { state: State::Up { met: false }, steady: STEADY_FIRST, returned: None }
    }
}

impl Standing {
    /// Takes a sign; to be called on every tick, and after whatever may have changed it.
    pub(super) fn observe(&mut self, now: Instant, sign: Sign) -> Option<Change> {
        match (self.state, sign) {
            (State::Up { .. } | State::Suspected { .. }, Sign::Failed) => self.leave(now, Absence::Unreachable),
            (State::Up { .. } | State::Suspected { .. }, Sign::Live { able: false, .. }) => {
                self.leave(now, Absence::Unable)
            }
            (State::Up { met: true }, Sign::Trying) => self.become_state(State::Suspected { greeted: None }),
            (State::Up { .. }, Sign::Live { .. }) => self.become_state(State::Up { met: true }),
            (State::Up { met: false }, Sign::Trying) => None,
            // Nobody needed it, or does any more.
            (State::Up { .. } | State::Suspected { .. }, Sign::Quiet) => self.become_state(State::Up { met: false }),

            // It broke for the second time.
            (State::Suspected { greeted: Some(_) }, Sign::Trying) => self.leave(now, Absence::Unreachable),
            (State::Suspected { greeted: Some(since) }, Sign::Live { heard, .. }) if heard >= since + self.steady => {
                self.become_state(State::Up { met: true })
            }
            (State::Suspected { greeted: None }, Sign::Live { .. }) => {
                self.become_state(State::Suspected { greeted: Some(now) })
            }
            (State::Suspected { .. }, Sign::Live { .. } | Sign::Trying) => None,

            (State::Away { greeted: Some(since) }, Sign::Live { heard, able: true }) => {
                if heard < since + self.steady {
                    return None;
                }
                self.returned = Some(now);
                self.state = State::Up { met: true };
                Some(Change::Returned)
            }
            (State::Away { greeted: None }, Sign::Live { able: true, .. }) => {
                self.become_state(State::Away { greeted: Some(now) })
            }
            (State::Away { .. }, _) => self.become_state(State::Away { greeted: None }),
        }
    }

    /// The host said that it goes away.
    pub(super) fn says_goodbye(&mut self, now: Instant) -> Option<Change> {
        self.leave(now, Absence::Leaving)
    }

    /// Whether others are asked in its place.
    pub(super) fn is_away(&self) -> bool {
        matches!(self.state, State::Away { .. })
    }

    /// Whether it is away, and answers: it would do if there were no other.
    pub(super) fn is_returning(&self) -> bool {
        matches!(self.state, State::Away { greeted: Some(_) })
    }

    fn leave(&mut self, now: Instant, absence: Absence) -> Option<Change> {
        let was_away = self.is_away();
        self.state = State::Away { greeted: None };
        if was_away {
            return None;
        }
        self.steady = match self.returned {
            Some(returned) if now.saturating_since(returned) < CALM => (self.steady * 2).min(STEADY_LAST),
            _ => STEADY_FIRST,
        };
        Some(Change::Left(absence))
    }

    fn become_state(&mut self, state: State) -> Option<Change> {
        self.state = state;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(50);
    const LEFT: Option<Change> = Some(Change::Left(Absence::Unreachable));

    struct Bench {
        standing: Standing,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            Self { standing: Standing::default(), now: Instant::from_micros(1_000_000_000) }
        }

        fn observe(&mut self, sign: Sign) -> Option<Change> {
            self.standing.observe(self.now, sign)
        }

        /// A host that answers every heartbeat.
        fn live(&mut self) -> Option<Change> {
            self.observe(Sign::Live { heard: self.now, able: true })
        }

        /// The first change while the host is live for `time`, and when it came.
        fn live_for(&mut self, time: Duration) -> Option<(Duration, Change)> {
            let (start, end) = (self.now, self.now + time);
            while self.now < end {
                if let Some(change) = self.live() {
                    return Some((self.now.saturating_since(start), change));
                }
                self.now = self.now + STEP;
            }
            None
        }
    }

    #[test]
    fn a_host_is_given_the_benefit_of_the_doubt_until_something_fails() {
        let mut bench = Bench::new();
        assert_eq!([Sign::Quiet, Sign::Trying, Sign::Quiet].map(|sign| bench.observe(sign)), [None; 3]);
        assert!(!bench.standing.is_away());
        assert_eq!(bench.observe(Sign::Failed), LEFT);
        assert_eq!(bench.observe(Sign::Failed), None, "told once");
        assert!(bench.standing.is_away() && !bench.standing.is_returning());
    }

    #[test]
    fn a_broken_stream_is_given_one_try() {
        let mut bench = Bench::new();
        bench.live();
        assert_eq!(bench.observe(Sign::Trying), None);
        assert!(!bench.standing.is_away());
        // It resumes, and is steady: that was nothing.
        assert_eq!(bench.live_for(STEADY_FIRST * 2), None);
        assert_eq!(bench.observe(Sign::Trying), None);
        bench.live();
        assert_eq!(bench.observe(Sign::Trying), LEFT, "the second break in a row");
        // A session that was closed because nobody needed it did not break.
        let mut bench = Bench::new();
        bench.live();
        assert_eq!([Sign::Quiet, Sign::Trying].map(|sign| bench.observe(sign)), [None; 2]);
        bench.live();
        assert_eq!(bench.observe(Sign::Trying), None, "the first break");
        let mut bench = Bench::new();
        bench.live();
        bench.observe(Sign::Trying);
        assert_eq!(bench.observe(Sign::Failed), LEFT, "the try failed");
    }

    #[test]
    fn it_returns_when_it_has_been_steady() {
        let mut bench = Bench::new();
        bench.observe(Sign::Failed);
        assert_eq!(bench.live_for(STEADY_FIRST / 2), None);
        assert!(bench.standing.is_returning());
        assert_eq!(bench.observe(Sign::Trying), None, "once more from the start");
        assert!(!bench.standing.is_returning());
        assert_eq!(bench.live_for(STEADY_FIRST * 2), Some((STEADY_FIRST, Change::Returned)));
        assert!(!bench.standing.is_away());
        // What it answered before it was greeted does not count.
        let mut bench = Bench::new();
        bench.observe(Sign::Failed);
        let heard = bench.now;
        for _ in 0..100 {
            bench.now = bench.now + STEP;
            assert_eq!(bench.observe(Sign::Live { heard, able: true }), None, "it answers no heartbeat");
        }
    }

    #[test]
    fn one_that_comes_and_goes_takes_longer_each_time() {
        let mut bench = Bench::new();
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert_eq!(bench.observe(Sign::Failed), LEFT);
            let (after, change) = bench.live_for(STEADY_LAST * 2).expect("it comes back in the end");
            assert_eq!(change, Change::Returned);
            waits.push(after.as_secs());
            bench.now = bench.now + Duration::from_secs(5);
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60, 60]);
        bench.now = bench.now + CALM;
        bench.observe(Sign::Failed);
        assert_eq!(bench.live_for(STEADY_LAST), Some((STEADY_FIRST, Change::Returned)), "it was calm");
    }

    #[test]
    fn a_host_without_a_lease_is_of_no_use() {
        let mut bench = Bench::new();
        bench.live();
        let unable = Sign::Live { heard: bench.now, able: false };
        assert_eq!(bench.observe(unable), Some(Change::Left(Absence::Unable)));
        assert_eq!(bench.observe(unable), None);
        assert!(!bench.standing.is_returning());
        assert_eq!(bench.live_for(STEADY_FIRST * 2), Some((STEADY_FIRST, Change::Returned)));
        assert_eq!(bench.standing.says_goodbye(bench.now), Some(Change::Left(Absence::Leaving)));
        assert_eq!(bench.standing.says_goodbye(bench.now), None);
    }
}
