//! What must never happen, judged by what clients believe and what hosts answer; and what must happen somewhere.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use turnstile_core::Mode;

use crate::client::Client;
use crate::plan::{KEYS, Plan};

/// What the history so far leaves behind: all that later steps are judged by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Judge {
    /// Work that may go on although its hold ended.
    pub(crate) lingering: Vec<Lingering>,
    pub(crate) last_tokens: [Option<u64>; KEYS.len()],
    pub(crate) violation: Option<String>,
}

/// A hold that ended uncleanly, during its lock delay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lingering {
    pub(crate) until: u64,
    pub(crate) key: usize,
    pub(crate) mode: Mode,
}

impl Judge {
    /// Keeps the first one.
    pub(crate) fn violate(&mut self, what: impl FnOnce() -> String) {
        self.violation.get_or_insert_with(what);
    }

    pub(crate) fn forget_the_past(&mut self, now: u64) {
        self.lingering.retain(|hold| hold.until > now);
    }

    /// I2: the tokens of a grant.
    pub(crate) fn granted(&mut self, keys: impl Iterator<Item = (usize, u64)>) {
        for (key, token) in keys {
            let last = self.last_tokens[key].replace(token);
            if last.is_some_and(|last| token <= last) {
                self.violate(|| format!("I2: token {token} of {} after {last:?}", KEYS[key]));
            }
        }
    }

    /// I1: all that is held now, and all that may still be worked on.
    pub(crate) fn judge_holds<'a>(&mut self, now: u64, plan: &Plan, clients: impl Iterator<Item = &'a Client>) {
        let mut by_key: BTreeMap<usize, Vec<Mode>> = BTreeMap::new();
        for client in clients {
            for (key, mode) in client.believes(now, plan) {
                by_key.entry(key).or_default().push(mode);
            }
        }
        for hold in self.lingering.iter().filter(|hold| hold.until > now) {
            by_key.entry(hold.key).or_default().push(hold.mode);
        }
        if let Some((key, modes)) = by_key.iter().find(|(_, modes)| !compatible(modes)) {
            self.violate(|| format!("I1: {} is held as {modes:?} at once", KEYS[*key]));
        }
    }
}

/// By the words of the design alone.
fn compatible(modes: &[Mode]) -> bool {
    match modes {
        [] | [_] => true,
        all if all.iter().all(|mode| *mode == Mode::Shared) => true,
        all => {
            let limits = all.iter().map(|mode| match mode {
                Mode::Limit(most) => Some(most.get() as usize),
                Mode::Exclusive | Mode::Shared => None,
            });
            limits.min().flatten().is_some_and(|least| all.len() <= least)
        }
    }
}

/// What an exploration must have come across, or it proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    Granted,
    GrantedSeveralKeys,
    Shared,
    Limited,
    Rejected,
    GrantTooLate,
    GrantAfterCancel,
    GrantToldAgain,
    PromiseEnded,
    LostTold,
    SessionEnded,
    ResumedWithHold,
    ReleaseResumed,
    KeyHandedOver,
    TakenOver,
    QuarantineInherited,
    LeaseLost,
    ClaimedAgain,
    Standstill,
}

/// What was seen, by all threads of an exploration.
#[derive(Debug, Default)]
pub(crate) struct Sights([AtomicBool; Sight::Standstill as usize + 1]);

impl Sights {
    pub(crate) fn see(&self, sight: Sight) {
        let seen = &self.0[sight as usize];
        if !seen.load(Ordering::Relaxed) {
            seen.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn has(&self, sight: Sight) -> bool {
        self.0[sight as usize].load(Ordering::Relaxed)
    }
}
