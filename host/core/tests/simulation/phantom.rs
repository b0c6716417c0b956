//! Another host, whose lease never ends: it wants keys now and then, works on them for a while, and gives them back.

use std::collections::BTreeMap;

use turnstile_core::{ClaimId, LockKey};

use crate::clock::{MS, SECOND};
use crate::history::{History, SpanId};
use crate::random::Random;
use crate::store::{Event, Incarnation, Operation, Store};

/// Its name in the store.
pub(crate) const INCARNATION: Incarnation = u64::MAX;

#[derive(Debug, Default)]
pub(crate) struct Phantom {
    keys: BTreeMap<LockKey, Doing>,
    next: u64,
}

#[derive(Debug)]
enum Doing {
    Claiming {
        claim: ClaimId,
    },
    /// Ours, but a dead host's promises and lock delays are waited out.
    Waiting {
        until: u64,
        epoch: u64,
    },
    Working {
        until: u64,
        belief: SpanId,
    },
}

impl Phantom {
    pub(crate) fn act(
        &mut self,
        now: u64,
        calm: bool,
        keys: &[LockKey],
        store: &mut Store,
        history: &mut History,
        random: &mut Random,
    ) {
        if !calm && now >= self.next {
            self.next = now + random.range(100 * MS, 6 * SECOND);
            let key = keys[random.range(0, keys.len() as u64 - 1) as usize].clone();
            if !self.keys.contains_key(&key) {
                let claim = ClaimId(now);
                self.keys.insert(key.clone(), Doing::Claiming { claim });
                store.submit(now, INCARNATION, Operation::Claim { key, claim, lock_delay: 0, new_epoch: false });
            }
        }
        let mut over = Vec::new();
        for (key, doing) in &mut self.keys {
            match doing {
                Doing::Claiming { .. } if calm => over.push(key.clone()),
                Doing::Waiting { until, epoch } if *until <= now => {
                    let work = random.range(0, SECOND);
                    let token = *epoch << 20;
                    history.granted(now, key, token);
                    let belief = history.believe(now, key, format!("the other host, token {token}"));
                    history.work(now, key, "the upstream, for the other host".into(), now + work);
                    *doing = Doing::Working { until: now + work, belief };
                }
                Doing::Working { until, belief } if *until <= now => {
                    history.stop_believing(key, *belief, now);
                    over.push(key.clone());
                }
                _ => {}
            }
        }
        for key in over {
            self.keys.remove(&key);
            store.submit(now, INCARNATION, Operation::Yield { key });
        }
    }

    pub(crate) fn told(&mut self, now: u64, event: Event) {
        if let Event::Gained { key, claim, epoch, quarantine_left, .. } = event
            && let Some(doing) = self.keys.get_mut(&key)
            && matches!(doing, Doing::Claiming { claim: asked } if *asked == claim)
        {
            *doing = Doing::Waiting { until: now + quarantine_left, epoch };
        }
    }
}
