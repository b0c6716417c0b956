//! What the store has told one host about its keys, and what the host has said about them.

use std::collections::BTreeMap;

use turnstile_core::{ClaimId, Command, HandoffBudget, Input, LockKey};

use crate::clock::micros;

/// The keys of one run of a host, by its own clock.
#[derive(Debug, Default)]
pub(crate) struct Ownerships {
    keys: BTreeMap<LockKey, OfKey>,
}

#[derive(Debug, Default)]
struct OfKey {
    /// The claim that is on its way.
    claim: Option<ClaimId>,
    owned: Option<Owned>,
    quarantined_until: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Owned {
    pub(crate) lock_delay: u64,
    /// Another host wants the key: the grants that are left, and until when they may be made.
    pub(crate) contention: Option<(u32, u64)>,
}

impl Ownerships {
    pub(crate) fn owned(&self, key: &LockKey) -> Option<Owned> {
        self.keys.get(key)?.owned
    }

    /// Until when a dead owner's promises and lock delays are waited out.
    pub(crate) fn quarantined_until(&self, key: &LockKey) -> u64 {
        self.keys.get(key).map_or(0, |key| key.quarantined_until)
    }

    /// A grant of its own was made; false if the budget had none left.
    pub(crate) fn spend(&mut self, key: &LockKey, now: u64) -> bool {
        let owned = self.keys.get_mut(key).and_then(|key| key.owned.as_mut());
        let Some((left, until)) = owned.and_then(|owned| owned.contention.as_mut()) else { return true };
        let good = *left > 0 && now < *until;
        *left = left.saturating_sub(1);
        good
    }

    pub(crate) fn hear(&mut self, now: u64, input: &Input, budget: HandoffBudget) {
        match input {
            Input::OwnershipGained { key, claim, lock_delay, quarantined_until, .. } => {
                let key = self.keys.entry(key.clone()).or_default();
                if key.claim == Some(*claim) {
                    key.claim = None;
                    key.quarantined_until = key.quarantined_until.max(quarantined_until.as_micros());
                    let contention = key.owned.and_then(|owned| owned.contention);
                    key.owned = Some(Owned { lock_delay: micros(*lock_delay), contention });
                }
            }
            Input::OwnershipQueued { key, claim } => {
                let key = self.keys.entry(key.clone()).or_default();
                if key.claim == Some(*claim) {
                    key.owned = None;
                }
            }
            Input::OwnershipRefused { key, claim } => {
                let key = self.keys.entry(key.clone()).or_default();
                if key.claim == Some(*claim) {
                    key.claim = None;
                    if let Some(owned) = &mut key.owned {
                        owned.contention = Some((0, now));
                    }
                }
            }
            Input::OwnershipContended { key } => {
                let key = self.keys.entry(key.clone()).or_default();
                if let Some(owned) = &mut key.owned {
                    owned.contention.get_or_insert((budget.grants, now + micros(budget.time)));
                }
            }
            Input::OwnershipLost { key } => {
                let key = self.keys.entry(key.clone()).or_default();
                if key.owned.take().is_some() {
                    key.claim = None;
                }
            }
            Input::LeaseLost => {
                for key in self.keys.values_mut() {
                    (key.owned, key.claim) = (None, None);
                }
            }
            _ => {}
        }
    }

    pub(crate) fn say(&mut self, command: &Command) {
        match command {
            Command::ClaimOwnership { key, claim, .. } => {
                self.keys.entry(key.clone()).or_default().claim = Some(*claim);
            }
            Command::YieldOwnership { key } => {
                let key = self.keys.entry(key.clone()).or_default();
                (key.owned, key.claim) = (None, None);
            }
            _ => {}
        }
    }
}
