//! Claims on their way to the store, and when to try a failed one again.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use turnstile_core::{ClaimId, Instant, LockKey};

use crate::store::{Operation, StoreError};

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// What follows from a failed claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is tried again by itself, or nobody wants it any more.
    Settled,
    /// The store will never do it.
    GiveUp,
}

#[derive(Debug)]
struct Pending {
    claim: ClaimId,
    operation: Operation,
    pause: Duration,
    retry_at: Option<Instant>,
}

/// One pending claim a key: the engine withdraws a claim before it makes another.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pending: HashMap<LockKey, Pending>,
    retries: BTreeSet<(Instant, LockKey)>,
}

impl Claims {
    pub(super) fn submitted(&mut self, key: LockKey, claim: ClaimId, operation: Operation) {
        self.forget(&key);
        self.pending.insert(key, Pending { claim, operation, pause: RETRY_FIRST, retry_at: None });
    }

    pub(super) fn answered(&mut self, key: &LockKey, claim: ClaimId) {
        if self.pending.get(key).is_some_and(|pending| pending.claim == claim) {
            self.forget(key);
        }
    }

    /// The retry policy: a match on the error. `wanted` is false for a claim that nobody waits for.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        key: &LockKey,
        claim: ClaimId,
        error: &StoreError,
        wanted: bool,
    ) -> Verdict {
        let Some(pending) = self.pending.get_mut(key).filter(|pending| pending.claim == claim) else {
            return Verdict::Settled;
        };
        match error {
            // While the store is away, claims for all that was ever asked for would pile up.
            StoreError::Unavailable(_) if !wanted => {
                self.forget(key);
                Verdict::GiveUp
            }
            StoreError::Unavailable(_) | StoreError::Ambiguous(_) => {
                let retry_at = now + pending.pause;
                tracing::warn!(%key, %error, retry_ms = pending.pause.as_millis(), "a claim failed and is tried again");
                pending.pause = (pending.pause * 2).min(RETRY_MAX);
                pending.retry_at = Some(retry_at);
                self.retries.insert((retry_at, key.clone()));
                Verdict::Settled
            }
            StoreError::Rejected(_) => {
                tracing::error!(%key, %error, "a claim was refused");
                self.forget(key);
                Verdict::GiveUp
            }
        }
    }

    pub(super) fn forget(&mut self, key: &LockKey) {
        if let Some(Pending { retry_at: Some(retry_at), .. }) = self.pending.remove(key) {
            self.retries.remove(&(retry_at, key.clone()));
        }
    }

    pub(super) fn forget_all(&mut self) {
        self.pending.clear();
        self.retries.clear();
    }

    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.retries.first().map(|(retry_at, _)| *retry_at)
    }

    /// Takes out what must be submitted again now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Operation> {
        let mut due = Vec::new();
        while self.next_retry().is_some_and(|retry_at| retry_at <= now) {
            let Some((_, key)) = self.retries.pop_first() else { break };
            if let Some(pending) = self.pending.get_mut(&key) {
                pending.retry_at = None;
                due.push(pending.operation.clone());
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(claims: &mut Claims, id: u64) -> (LockKey, ClaimId) {
        let key = LockKey::parse("a").unwrap();
        let operation =
            Operation::Claim { key: key.clone(), claim: ClaimId(id), lock_delay: Duration::ZERO, new_epoch: false };
        claims.submitted(key.clone(), ClaimId(id), operation);
        (key, ClaimId(id))
    }

    #[test]
    fn an_unavailable_store_is_asked_again_with_growing_pauses() {
        let mut claims = Claims::default();
        let (key, id) = claim(&mut claims, 1);
        let mut now = Instant::default();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let error = StoreError::Unavailable("away".into());
            assert_eq!(claims.failed(now, &key, id, &error, true), Verdict::Settled);
            let retry_at = claims.next_retry().unwrap();
            pauses.push(retry_at.saturating_since(now).as_millis());
            assert!(claims.due(now).is_empty());
            now = retry_at;
            assert_eq!(claims.due(now).len(), 1);
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
    }

    #[test]
    fn an_unavailable_store_is_not_asked_again_for_nobody() {
        let mut claims = Claims::default();
        let now = Instant::default();
        let (key, id) = claim(&mut claims, 1);
        assert_eq!(claims.failed(now, &key, id, &StoreError::Unavailable("away".into()), false), Verdict::GiveUp);
        assert!(claims.pending.is_empty());
        // What may have landed must be found out.
        let (key, id) = claim(&mut claims, 2);
        assert_eq!(claims.failed(now, &key, id, &StoreError::Ambiguous("lost".into()), false), Verdict::Settled);
        assert!(claims.next_retry().is_some());
    }

    #[test]
    fn a_refusal_is_final_and_an_old_claims_answer_is_nobodys() {
        let mut claims = Claims::default();
        let (key, id) = claim(&mut claims, 1);
        assert_eq!(
            claims.failed(Instant::default(), &key, id, &StoreError::Rejected("no".into()), true),
            Verdict::GiveUp
        );
        let (key, newer) = claim(&mut claims, 2);
        assert_eq!(
            claims.failed(Instant::default(), &key, id, &StoreError::Rejected("no".into()), true),
            Verdict::Settled
        );
        claims.answered(&key, id);
        assert_eq!(claims.pending.len(), 1);
        claims.answered(&key, newer);
        assert!(claims.pending.is_empty() && claims.retries.is_empty());
    }
}
