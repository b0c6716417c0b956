//! What waits to be sent: what the driver waits for goes first, and the rest gets its turn all the same.

use std::collections::VecDeque;

/// Every so many times, the store's own business goes first.
const OWN_TURN: u8 = 4;

/// Two queues, each first come, first served.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    driven: VecDeque<T>,
    own: VecDeque<T>,
    turn: u8,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { driven: VecDeque::new(), own: VecDeque::new(), turn: 0 }
    }
}

impl<T> Lanes<T> {
    pub(super) fn push(&mut self, item: T, driven: bool) {
        if driven { self.driven.push_back(item) } else { self.own.push_back(item) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.driven.is_empty() && self.own.is_empty()
    }

    /// The next ones, at most `count_max`.
    pub(super) fn take(&mut self, count_max: usize) -> Vec<T> {
        self.turn = (self.turn + 1) % OWN_TURN;
        let (first, second) =
            if self.turn == 0 { (&mut self.own, &mut self.driven) } else { (&mut self.driven, &mut self.own) };
        let mut taken: Vec<T> = first.drain(..first.len().min(count_max)).collect();
        taken.extend(second.drain(..second.len().min(count_max - taken.len())));
        taken
    }

    pub(super) fn take_all(&mut self) -> impl Iterator<Item = T> {
        std::mem::take(&mut self.driven).into_iter().chain(std::mem::take(&mut self.own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_goes_first_and_nobody_starves() {
        let mut lanes = Lanes::default();
        for number in 0..20 {
            lanes.push(number, true);
            lanes.push(100 + number, false);
        }
        assert_eq!(lanes.take(3), [0, 1, 2]);
        assert_eq!(lanes.take(3), [3, 4, 5]);
        assert_eq!(lanes.take(3), [6, 7, 8]);
        assert_eq!(lanes.take(3), [100, 101, 102]);
        assert_eq!(lanes.take(12), [9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 103]);
        assert_eq!(lanes.take_all().count(), 16);
        assert!(lanes.is_empty());
    }
}
