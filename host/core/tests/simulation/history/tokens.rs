//! I2 over all hosts: the tokens of a key in the order in which they were granted; and the barriers told with them.

use std::collections::BTreeMap;

use turnstile_core::{LockKey, Mode};

use crate::log::Log;
use crate::wire::Run;

#[derive(Debug, Default)]
pub(crate) struct Tokens {
    keys: BTreeMap<LockKey, OfKey>,
}

#[derive(Debug, Default)]
struct OfKey {
    last: Option<u64>,
    /// How the hold of each token excludes others.
    given: BTreeMap<u64, Given>,
    barriers: Vec<Barrier>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Given {
    pub(crate) mode: Mode,
    pub(crate) by: Run,
}

/// From then on, nobody believes in a token below.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Barrier {
    pub(crate) told: u64,
    pub(crate) below: u64,
}

impl Tokens {
    /// A hold of its own begins.
    pub(crate) fn give(&mut self, key: &LockKey, token: u64, given: Given, log: &mut Log) {
        log.count("grants");
        let of_key = self.keys.entry(key.clone()).or_default();
        if let Some(last) = of_key.last.filter(|last| token <= *last) {
            log.violate("I2 token", format!("{key}: {token} after {last}"));
        }
        of_key.last = Some(token);
        of_key.given.insert(token, given);
    }

    pub(crate) fn given(&self, key: &LockKey, token: u64) -> Option<Given> {
        self.keys.get(key)?.given.get(&token).copied()
    }

    /// All tokens that this run of a host has given.
    pub(crate) fn of_run(&self, key: &LockKey, by: Run) -> impl Iterator<Item = u64> {
        let given = self.keys.get(key).into_iter().flat_map(|of_key| &of_key.given);
        given.filter(move |(_, given)| given.by == by).map(|(token, _)| *token)
    }

    pub(crate) fn tell_barrier(&mut self, key: &LockKey, token: u64, barrier: u64, log: &mut Log) {
        let exclusive = self.given(key, token).is_some_and(|given| given.mode == Mode::Exclusive);
        if barrier > token || (exclusive && barrier != token) {
            log.violate("I2 barrier", format!("{key}: token {token}, barrier {barrier}"));
        }
        let told = log.now;
        self.keys.entry(key.clone()).or_default().barriers.push(Barrier { told, below: barrier });
    }

    pub(crate) fn barriers(&self, key: &LockKey) -> &[Barrier] {
        self.keys.get(key).map_or(&[], |of_key| &of_key.barriers)
    }
}
