//! Heartbeats: numbers them, remembers when each was sent, and turns a validity into an instant.

use core::time::Duration;
use std::collections::VecDeque;

use crate::clock::Instant;

/// The heartbeats of one session (a Hello counts as one).
#[derive(Debug, Default)]
pub(super) struct Pulse {
    last_seq: u64,
    /// When each heartbeat was sent that no later one has overtaken in the host's answers; ascending.
    sent: VecDeque<(u64, Instant)>,
    /// The newest heartbeat that the host is known to have processed.
    answered_seq: u64,
}

impl Pulse {
    /// As many may be unanswered; a stream that is so far behind is dead anyway.
    const UNANSWERED_MAX: usize = 256;

    /// The number of the last heartbeat sent.
    pub(super) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Whether the last heartbeat has been answered.
    pub(super) fn is_answered(&self) -> bool {
        self.answered_seq == self.last_seq
    }

    /// Numbers a heartbeat that is sent at `now` (an instant *before* the send).
    pub(super) fn beat(&mut self, now: Instant) -> u64 {
        self.last_seq += 1;
        if self.sent.len() >= Self::UNANSWERED_MAX {
            self.sent.pop_back();
        }
        self.sent.push_back((self.last_seq, now));
        self.last_seq
    }

    /// A new stream begins: heartbeats of the old one will not be answered any more.
    pub(super) fn restart(&mut self, now: Instant) -> u64 {
        self.sent.clear();
        self.beat(now)
    }

    /// The host has processed heartbeat `seq`: the instant it was sent, which validities are anchored at. `None` if
    /// that instant is not known (any more): then nothing may be believed.
    pub(super) fn answered(&mut self, seq: u64) -> Option<Instant> {
        if seq > self.last_seq {
            return None;
        }
        self.answered_seq = self.answered_seq.max(seq);
        while self.sent.front().is_some_and(|&(older, _)| older < seq) {
            self.sent.pop_front();
        }
        self.sent.front().filter(|&&(found, _)| found == seq).map(|&(_, at)| at)
    }

    /// For how long the oldest unanswered heartbeat has been waiting for its answer.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        self.sent
            .iter()
            .find(|&&(seq, _)| seq > self.answered_seq)
            .map_or(Duration::ZERO, |&(_, at)| now.saturating_since(at))
    }
}
