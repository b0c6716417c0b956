//! Operations that wait to be carried out: in order for each key, while the keys take turns.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use turnstile_core::LockKey;

use crate::store::{Event, Operation, StoreError};

/// Every operation that was submitted and is neither carried out nor answered.
#[derive(Debug, Default)]
pub(in crate::store) struct Pending {
    /// No queue in it is empty.
    by_key: HashMap<LockKey, VecDeque<Operation>>,
    /// Every key of `by_key`, once.
    turns: VecDeque<LockKey>,
    /// What came after the end of the lease, if that was submitted.
    after_end: Option<VecDeque<Operation>>,
}

impl Pending {
    /// Adds what was submitted. A claim that is given up before it was carried out leaves only the yield, so that keys
    /// that are claimed and given up faster than the disk can follow do not pile up.
    pub(in crate::store) fn push(&mut self, operation: Operation) {
        if let Some(after_end) = &mut self.after_end {
            after_end.push_back(operation);
            return;
        }
        let Some(key) = key_of(&operation).cloned() else {
            self.after_end = Some(VecDeque::new());
            return;
        };
        let queue = match self.by_key.entry(key) {
            Entry::Occupied(queue) => queue.into_mut(),
            Entry::Vacant(vacant) => {
                self.turns.push_back(vacant.key().clone());
                vacant.insert(VecDeque::new())
            }
        };
        if matches!(operation, Operation::Yield { .. }) {
            while matches!(queue.back(), Some(Operation::Claim { .. })) {
                queue.pop_back();
            }
            if matches!(queue.back(), Some(Operation::Yield { .. })) {
                return;
            }
        }
        queue.push_back(operation);
    }

    /// Adds an operation of the store's own, before all that waits.
    pub(in crate::store) fn push_front(&mut self, operation: Operation) {
        if let Some(key) = self.insert_first(operation) {
            self.turns.push_front(key);
        }
    }

    /// Puts back an operation that failed: still the first of its key, but all other keys are tried before.
    pub(in crate::store) fn put_back(&mut self, operation: Operation) {
        if let Some(key) = self.insert_first(operation) {
            self.turns.push_back(key);
        }
    }

    /// Puts the operation before the others of its key; the answer is the key, if it has no turn yet.
    fn insert_first(&mut self, operation: Operation) -> Option<LockKey> {
        let key = key_of(&operation)?.clone();
        let queue = self.by_key.entry(key.clone()).or_default();
        queue.push_front(operation);
        (queue.len() == 1).then_some(key)
    }

    /// The first operation of each of the next keys: what becomes of it decides the second of the same key.
    pub(in crate::store) fn take(&mut self, count_max: usize) -> Vec<Operation> {
        self.take_unless(count_max, |_| false)
    }

    /// As [`Pending::take`], without keys that are `busy`.
    pub(in crate::store) fn take_unless(
        &mut self,
        count_max: usize,
        busy: impl Fn(&LockKey) -> bool,
    ) -> Vec<Operation> {
        let mut taken = Vec::with_capacity(self.turns.len().min(count_max));
        for _ in 0..self.turns.len() {
            if taken.len() == count_max {
                break;
            }
            let Some(key) = self.turns.pop_front() else { break };
            if busy(&key) {
                self.turns.push_back(key);
                continue;
            }
            let Some(queue) = self.by_key.get_mut(&key) else { continue };
            taken.extend(queue.pop_front());
            if queue.is_empty() {
                self.by_key.remove(&key);
            } else {
                self.turns.push_back(key);
            }
        }
        taken
    }

    /// Takes out all claims; what is to be given up stays.
    pub(in crate::store) fn take_claims(&mut self) -> Vec<Operation> {
        let mut claims = Vec::new();
        for key in &self.turns {
            if let Some(queue) = self.by_key.get_mut(key) {
                let all = queue.drain(..);
                let (taken, left): (Vec<_>, Vec<_>) =
                    all.partition(|operation| matches!(operation, Operation::Claim { .. }));
                claims.extend(taken);
                queue.extend(left);
            }
        }
        self.by_key.retain(|_, queue| !queue.is_empty());
        self.turns.retain(|key| self.by_key.contains_key(key));
        claims
    }

    /// Whether nothing waits but the end of the lease.
    pub(in crate::store) fn only_the_end(&self) -> bool {
        self.turns.is_empty() && self.after_end.is_some()
    }

    /// Whether the end of the lease was submitted.
    pub(in crate::store) fn wants_to_end(&self) -> bool {
        self.after_end.is_some()
    }

    /// The lease has ended; what came after that is next.
    pub(in crate::store) fn ended(&mut self) {
        for operation in self.after_end.take().unwrap_or_default() {
            self.push(operation);
        }
    }

    pub(in crate::store) fn is_empty(&self) -> bool {
        self.turns.is_empty() && self.after_end.is_none()
    }

    /// Takes out everything, and answers it as if it were carried out where nothing is left: claims fail, a yield has no
    /// object any more, nor has the end of a lease.
    pub(in crate::store) fn answers(&mut self, error: impl Fn() -> StoreError) -> Vec<Event> {
        let answer = |operation| match operation {
            Operation::Claim { key, claim, .. } => Some(Event::Failed { key, claim, error: error() }),
            Operation::Yield { .. } => None,
            Operation::EndLease => Some(Event::LeaseEnded),
        };
        self.take_all().into_iter().filter_map(answer).collect()
    }

    /// Everything, in an order in which it can be answered.
    fn take_all(&mut self) -> Vec<Operation> {
        let Self { mut by_key, turns, after_end } = std::mem::take(self);
        let mut all: Vec<Operation> = turns.iter().filter_map(|key| by_key.remove(key)).flatten().collect();
        if let Some(after_end) = after_end {
            all.push(Operation::EndLease);
            all.extend(after_end);
        }
        all
    }
}

fn key_of(operation: &Operation) -> Option<&LockKey> {
    match operation {
        Operation::Claim { key, .. } | Operation::Yield { key } => Some(key),
        Operation::EndLease => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use turnstile_core::ClaimId;

    use super::*;

    fn key(name: &str) -> LockKey {
        LockKey::parse(&format!("t/{name}")).unwrap()
    }

    fn claim(name: &str, claim: u64) -> Operation {
        Operation::Claim { key: key(name), claim: ClaimId(claim), lock_delay: Duration::ZERO, new_epoch: false }
    }

    fn give_up(name: &str) -> Operation {
        Operation::Yield { key: key(name) }
    }

    fn pending(operations: impl IntoIterator<Item = Operation>) -> Pending {
        let mut pending = Pending::default();
        operations.into_iter().for_each(|operation| pending.push(operation));
        pending
    }

    #[test]
    fn keys_take_turns_and_each_keeps_its_order() {
        let mut pending = pending([claim("a", 1), claim("a", 2), claim("a", 3), claim("b", 4), give_up("c")]);
        assert_eq!(pending.take(9), [claim("a", 1), claim("b", 4), give_up("c")]);
        pending.push(claim("b", 5));
        assert_eq!(pending.take(1), [claim("a", 2)]);
        assert_eq!(pending.take(9), [claim("b", 5), claim("a", 3)]);
        assert!(pending.is_empty());
    }

    #[test]
    fn keys_that_are_busy_keep_waiting() {
        let mut pending = pending([claim("a", 1), claim("b", 2), claim("c", 3)]);
        assert_eq!(pending.take_unless(9, |busy| *busy == key("b")), [claim("a", 1), claim("c", 3)]);
        assert_eq!(pending.take(9), [claim("b", 2)]);
    }

    #[test]
    fn a_claim_given_up_unseen_leaves_the_yield() {
        let mut pending = pending([give_up("a"), claim("a", 1), give_up("a"), claim("a", 2), give_up("a")]);
        pending.push(claim("a", 3));
        assert_eq!(pending.take_all(), [give_up("a"), claim("a", 3)]);
    }

    #[test]
    fn what_failed_goes_behind_other_keys_and_before_its_own() {
        let mut pending = pending([give_up("a"), claim("a", 1), claim("b", 2)]);
        let failed = pending.take(1);
        failed.into_iter().for_each(|operation| pending.put_back(operation));
        assert_eq!(pending.take(9), [claim("b", 2), give_up("a")]);
        assert_eq!(pending.take(9), [claim("a", 1)]);
    }

    #[test]
    fn claims_can_be_taken_out() {
        let mut pending = pending([claim("a", 1), give_up("b"), claim("b", 2)]);
        assert_eq!(pending.take_claims(), [claim("a", 1), claim("b", 2)]);
        assert_eq!(pending.take(9), [give_up("b")]);
        assert!(pending.is_empty());
    }

    #[test]
    fn the_end_of_the_lease_is_the_end_of_all_before_it_only() {
        let mut pending = pending([claim("a", 1), Operation::EndLease, give_up("a"), Operation::EndLease]);
        assert!(!pending.only_the_end());
        assert_eq!(pending.take(9), [claim("a", 1)]);
        assert!(pending.only_the_end());
        pending.push_front(claim("b", 2));
        assert!(!pending.only_the_end());
        assert_eq!(pending.take_all(), [claim("b", 2), Operation::EndLease, give_up("a"), Operation::EndLease]);
        assert!(pending.is_empty());
    }
}
