//! Counts the grants of a load, and how long each was in coming.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use super::row::Load;

/// What all contenders of a load write down.
pub struct Tally {
    /// When the last grant of each lane came. It was released at once.
    last: RefCell<Vec<Instant>>,
    /// From each release to the next grant of its lane, since the window began.
    took: RefCell<Vec<Duration>>,
    /// Nobody shall ask again.
    over: Cell<bool>,
    /// Why the load came to an end.
    fault: Cell<Option<String>>,
}

impl Tally {
    /// Nothing yet.
    pub fn new(load: &Load) -> Self {
        Self {
            last: RefCell::new(vec![Instant::now(); load.contenders]),
            took: RefCell::default(),
            over: Cell::default(),
            fault: Cell::default(),
        }
    }

    /// A grant of `lane` came, and is being released.
    pub fn passed(&self, lane: usize, now: Instant) {
        let last = std::mem::replace(&mut self.last.borrow_mut()[lane], now);
        self.took.borrow_mut().push(now.saturating_duration_since(last));
    }

    /// Tells the contenders to come to an end.
    pub fn end(&self) {
        self.over.set(true);
    }

    /// Whether they shall.
    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    /// A contender cannot go on.
    pub fn failed(&self, fault: String) {
        self.fault.set(Some(fault));
    }

    /// Takes the fault, if there is one.
    pub fn fault(&self) -> Option<String> {
        self.fault.take()
    }

    /// How many grants there were since the window began.
    pub fn cycles(&self) -> usize {
        self.took.borrow().len()
    }

    /// Ends a window and begins another: all times of the one that ended, sorted.
    pub fn take(&self) -> Vec<Duration> {
        let mut took = self.took.take();
        took.sort_unstable();
        took
    }
}

/// The value that `percent` of the sorted `values` do not exceed, in microseconds; 0 if there are none.
pub fn percentile_us(values: &[Duration], percent: usize) -> f64 {
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values.get(rank - 1).map_or(0.0, |value| value.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::etcd::row::Row;
    use crate::bench::program::Rows;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<Duration> = (1..=200).map(Duration::from_micros).collect();
        assert_eq!((percentile_us(&values, 50), percentile_us(&values, 99)), (100.0, 198.0));
        assert_eq!((percentile_us(&values[..1], 50), percentile_us(&values[..1], 99)), (1.0, 1.0));
        assert_eq!(percentile_us(&[], 50), 0.0);
    }

    #[test]
    fn a_time_is_from_the_last_grant_of_the_same_lane() {
        let load = Row::ALL.iter().find_map(|row| if let Row::Cycles(load) = row { Some(load) } else { None }).unwrap();
        let tally = Tally::new(load);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        for (lane, ms) in [(0, 0), (1, 10)] {
            tally.passed(lane, at(ms));
        }
        tally.take();
        for (lane, ms) in [(0, 15), (1, 17), (0, 35)] {
            tally.passed(lane, at(ms));
        }
        assert_eq!(tally.cycles(), 3);
        assert_eq!(tally.take(), [7, 15, 20].map(Duration::from_millis));
        assert_eq!(tally.cycles(), 0);
    }
}
