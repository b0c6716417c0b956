//! What must never happen, judged by what clients believe and what hosts answer; and what must happen somewhere.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};

use turnstile_core::Mode;

use crate::client::Client;
use crate::names::Names;
use crate::plan::KEYS;

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
    pub(crate) hold: HeldKey,
}

/// A key in the hands of somebody. Those who hold it under one token have joined each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldKey {
    pub(crate) key: usize,
    pub(crate) token: u64,
    pub(crate) mode: Mode,
}

impl HeldKey {
    pub(crate) fn feed(&self, names: &Names<'_>, hasher: &mut impl Hasher) {
        (self.key, names.age_of_token(self.key, self.token), self.mode).hash(hasher);
    }
}

impl Judge {
    /// Keeps the first one.
    pub(crate) fn violate(&mut self, what: impl FnOnce() -> String) {
        self.violation.get_or_insert_with(what);
    }

    pub(crate) fn forget_the_past(&mut self, now: u64) {
        self.lingering.retain(|lingering| lingering.until > now);
    }

    /// I2: a new hold has this token.
    pub(crate) fn granted(&mut self, key: usize, token: u64) {
        let last = self.last_tokens[key].replace(token);
        if last.is_some_and(|last| token <= last) {
            self.violate(|| format!("I2: token {token} of {} after {last:?}", KEYS[key]));
        }
    }

    /// I1: all that is held now, and all that may still be worked on.
    pub(crate) fn judge_holds<'a>(&mut self, now: u64, clients: impl Iterator<Item = &'a Client>, sights: &Sights) {
        let live: Vec<HeldKey> = clients.flat_map(|client| client.believes(now)).collect();
        let lingering = self.lingering.iter().filter(|lingering| lingering.until > now).map(|lingering| lingering.hold);
        for (key, name) in KEYS.iter().enumerate() {
            let modes = modes_of(key, live.iter().copied());
            if modes.len() > 1 {
                sights.see(if modes.contains(&Mode::Shared) { Sight::SharedHolds } else { Sight::LimitedHolds });
            }
            if live.iter().filter(|hold| hold.key == key).count() > modes.len() {
                sights.see(Sight::Joined);
            }
            let modes = modes_of(key, live.iter().copied().chain(lingering.clone()));
            if !compatible(&modes) {
                self.violation.get_or_insert_with(|| format!("I1: {name} is held as {modes:?} at once"));
            }
        }
    }
}

/// In which modes the key is held: once a token, in the strictest of its modes.
fn modes_of(key: usize, holds: impl Iterator<Item = HeldKey>) -> Vec<Mode> {
    let mut modes: BTreeMap<u64, Mode> = BTreeMap::new();
    for hold in holds.filter(|hold| hold.key == key) {
        let mode = modes.entry(hold.token).or_insert(hold.mode);
        *mode = strictest(*mode, hold.mode);
    }
    modes.into_values().collect()
}

fn strictest(one: Mode, other: Mode) -> Mode {
    match (one, other) {
        (Mode::Exclusive, _) | (_, Mode::Exclusive) => Mode::Exclusive,
        (Mode::Limit(least), Mode::Limit(most)) => Mode::Limit(least.min(most)),
        _ => one,
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
    SharedHolds,
    LimitedHolds,
    /// Two under one token.
    Joined,
    /// Of several keys, all of them free before.
    GrantedSeveral,
    /// Of several keys, one of them while another host wants it.
    GrantedSeveralContended,
    Rejected,
    /// It spent its validity on its way, and went back unsent.
    GrantTooLate,
    /// Its request had been cancelled, and it went back unsent.
    GrantAfterCancel,
    /// After a resume.
    GrantToldAgain,
    ResumedWithHold,
    /// A resume brought a release that may have been lost.
    ReleaseTold,
    PromiseEnded,
    /// The host ended a hold.
    LostTold,
    SessionEnded,
    /// Given up by one live host, and given to another.
    HandedOver,
    /// From a dead host.
    TakenOver,
    /// And the dead host's lock delays were still running.
    QuarantineInherited,
    LeaseLost,
    /// The answer to a claim got lost.
    ClaimedAgain,
    /// Nothing changes any more by time alone.
    Standstill,
    /// Somebody waits, and nobody holds; time alone ends that.
    WaitedOut,
}

/// What was seen, by all threads of an exploration.
#[derive(Debug, Default)]
pub(crate) struct Sights([AtomicBool; Sight::WaitedOut as usize + 1]);

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
