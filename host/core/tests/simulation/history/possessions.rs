//! I1: who believed to hold a key, whose upstream worked under it, and which of them may be at it together.

use std::collections::BTreeMap;

use turnstile_core::{LockKey, Mode};

use super::tokens::Tokens;
use crate::log::{Log, Time};
use crate::wire::Run;

/// One key of one request, from the instant its client took it for granted; all in true time.
#[derive(Clone, Debug)]
struct Possession {
    ask: usize,
    token: u64,
    from: u64,
    believed_until: Option<u64>,
    worked_until: u64,
}

/// Names a possession.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PossessionId(usize);

#[derive(Debug, Default)]
pub(crate) struct Possessions {
    keys: BTreeMap<LockKey, Vec<Possession>>,
    /// Holds of which an operator said that nothing works on them any more, and when.
    vouched: BTreeMap<(LockKey, u64), u64>,
}

impl Possessions {
    pub(crate) fn begin(&mut self, now: u64, key: &LockKey, token: u64, ask: usize, work: u64) -> PossessionId {
        let of_key = self.keys.entry(key.clone()).or_default();
        of_key.push(Possession { ask, token, from: now, believed_until: None, worked_until: now + work });
        PossessionId(of_key.len() - 1)
    }

    /// The client believes in it no more; its upstream may go on.
    pub(crate) fn end(&mut self, key: &LockKey, id: PossessionId, until: u64) {
        if let Some(possession) = self.keys.get_mut(key).and_then(|of_key| of_key.get_mut(id.0)) {
            possession.believed_until = Some(until.max(possession.from));
        }
    }

    /// An operator forces holds that this run of a host granted, and vouches that their work is over: of one token, or
    /// of all that the key has had.
    pub(crate) fn vouch(&mut self, now: u64, key: &LockKey, token: Option<u64>, by: Run, tokens: &Tokens) {
        for given in tokens.of_run(key, by).filter(|given| token.is_none_or(|token| token == *given)) {
            self.vouched.entry((key.clone(), given)).or_insert(now);
        }
    }

    /// When it was vouched that nothing works any more for this request, by any of its keys.
    fn vouched_at(&self, ask: usize) -> Option<u64> {
        let of_ask = self.keys.iter().flat_map(|(key, of_key)| {
            of_key.iter().filter(|possession| possession.ask == ask).map(|possession| (key.clone(), possession.token))
        });
        of_ask.filter_map(|hold| self.vouched.get(&hold)).min().copied()
    }

    fn work_end(&self, possession: &Possession) -> u64 {
        match self.vouched_at(possession.ask) {
            None => possession.worked_until,
            Some(at) => possession.worked_until.min(possession.belief_end().max(at)),
        }
    }

    /// Looks for holds that exclude each other and were believed in at once; for work too, if the lock delay covers all
    /// of it; and for beliefs below a barrier.
    pub(crate) fn judge(&self, tokens: &Tokens, orphans_too: bool, log: &mut Log) {
        for (key, of_key) in &self.keys {
            let mode = |possession: &Possession| tokens.given(key, possession.token).map(|given| given.mode);
            if let Some(what) = overlap(of_key, mode, Possession::belief_end) {
                log.violate("I1 hold overlap", format!("{key}: {what}"));
            }
            if orphans_too && let Some(what) = overlap(of_key, mode, |held| self.work_end(held)) {
                log.violate("I1 orphan overlap", format!("{key}: {what}"));
            }
            for possession in of_key {
                let told = tokens.barriers(key).iter().filter(|barrier| barrier.below > possession.token);
                if told.clone().any(|barrier| barrier.told < possession.belief_end()) {
                    let barriers: Vec<_> = told.collect();
                    log.violate("I1 below the barrier", format!("{key}: {possession:?}, {barriers:?}"));
                }
            }
        }
    }
}

impl Possession {
    fn belief_end(&self) -> u64 {
        self.believed_until.unwrap_or(u64::MAX)
    }
}

/// The first instant at which holds were live together that must not be. Holds of one token are one hold.
fn overlap(
    of_key: &[Possession],
    mode: impl Fn(&Possession) -> Option<Mode>,
    end: impl Fn(&Possession) -> u64,
) -> Option<String> {
    let mut ordered: Vec<&Possession> = of_key.iter().collect();
    ordered.sort_by_key(|possession| possession.from);
    let mut live: Vec<&Possession> = Vec::new();
    for next in ordered {
        live.retain(|before| end(before) > next.from);
        if end(next) <= next.from {
            continue;
        }
        live.push(next);
        let modes: BTreeMap<u64, Option<Mode>> = live.iter().map(|held| (held.token, mode(held))).collect();
        if !compatible(modes.values()) {
            let held = |held: &&Possession| {
                let (from, until) = (Time(held.from), Time(end(held)));
                format!("request {} token {} {:?} from{from} until{until}", held.ask, held.token, mode(held))
            };
            return Some(live.iter().map(held).collect::<Vec<_>>().join(", "));
        }
    }
    None
}

/// Whether holds in these modes may be at once. A hold that nobody granted excludes all.
fn compatible<'a>(modes: impl Iterator<Item = &'a Option<Mode>> + Clone) -> bool {
    let count = modes.clone().count();
    count < 2
        || modes.clone().all(|mode| *mode == Some(Mode::Shared))
        || modes.clone().all(|mode| matches!(mode, Some(Mode::Limit(most)) if count <= most.get() as usize))
}
