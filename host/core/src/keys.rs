//! The tracked keys: who owns them in the store, who holds and who waits, and which of them are idle.

use core::hash::BuildHasher;
use core::time::Duration;

use hashbrown::{DefaultHashBuilder, HashTable};
use slab::Slab;

use crate::fault::{Fault, Step};
use crate::holders::Holders;
use crate::queue::Queue;
use crate::requests::RequestIndex;
use crate::{ClaimId, Epoch, Instant, LockKey, Mode, Token};

/// A place in the table of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyIndex(pub(crate) u32);

/// One tracked key. A million idle ones must fit in memory: what only busy keys need is boxed.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) name: LockKey,
    pub(crate) ownership: Ownership,
    pub(crate) holders: Holders,
    /// Not to be granted before then.
    pub(crate) quarantine: Option<Instant>,
    /// Until when it is in quarantine for the sake of an owner before us.
    pub(crate) inherited: Instant,
    pub(crate) queue: Option<Box<Queue>>,
    /// Requests that will queue for it once they have all smaller keys.
    pub(crate) coming: u32,
    pub(crate) last_token: Option<Token>,
    /// When the store had last given us the key or a place in its queue, if it does not any more.
    pub(crate) heard: Option<Instant>,
    /// Moving average of hold times, in microseconds.
    pub(crate) typical_hold_us: Option<u32>,
    idle: Option<IdleLinks>,
}

#[derive(Clone, Copy, Debug)]
struct IdleLinks {
    since: Instant,
    before: Option<KeyIndex>,
    after: Option<KeyIndex>,
}

/// What the store says about a key.
#[derive(Clone, Debug)]
pub(crate) enum Ownership {
    /// Nothing: never asked, or lost. Tracked for a local hold or quarantine only.
    None,
    /// Asked for, not ours yet. Without waiters it is idle until the store answers.
    Claiming {
        claim: ClaimId,
        /// What the claim asked the record to remember.
        asked: Duration,
        queued: bool,
    },
    Owned(Owned),
}

impl Ownership {
    /// The store has not told yet who has the key.
    pub(crate) fn is_unanswered(&self) -> bool {
        matches!(self, Self::None | Self::Claiming { queued: false, .. })
    }
}

/// A key that is ours to grant.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    /// The claim that was answered last.
    pub(crate) claim: ClaimId,
    pub(crate) epoch: Epoch,
    pub(crate) next_sequence: u32,
    /// The lock delay that the store's record remembers: what a dead host's successor will keep.
    pub(crate) lock_delay: Duration,
    /// The largest lock delay that a claim asked for.
    pub(crate) asked: Duration,
    /// The one claim that is on its way: for a larger lock delay or a new epoch.
    pub(crate) pending: Option<ClaimId>,
    /// A new epoch was asked for, and has not come.
    pub(crate) epoch_asked: bool,
    /// Another host wants the key.
    pub(crate) contention: Option<Box<Contention>>,
}

/// What is left of the handoff budget.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contention {
    pub(crate) grants_left: u32,
    pub(crate) until: Instant,
}

impl Owned {
    /// The next grant's token; `None` when the epoch's tokens are used up.
    pub(crate) fn next_token(&self) -> Option<Token> {
        Token::new(self.epoch, self.next_sequence)
    }

    /// Whether it is time to ask for a new epoch: early enough that grants go on meanwhile.
    pub(crate) fn wants_epoch(&self) -> bool {
        !self.epoch_asked && self.next_sequence > Token::SEQUENCE_MAX / 4 * 3 && self.epoch < Token::EPOCH_MAX
    }
}

impl Contention {
    pub(crate) fn exhausted(&self, now: Instant) -> bool {
        self.grants_left == 0 || self.until <= now
    }
}

impl Key {
    fn new(name: LockKey) -> Self {
        Self {
            name,
            ownership: Ownership::None,
            holders: Holders::None,
            quarantine: None,
            inherited: Instant::default(),
            queue: None,
            coming: 0,
            last_token: None,
            heard: None,
            typical_hold_us: None,
            idle: None,
        }
    }

    /// Whether a hold in this mode may begin now, as far as earlier ones go.
    pub(crate) fn admits(&self, mode: Mode) -> bool {
        self.quarantine.is_none() && self.holders.admits(mode)
    }

    /// Neither held nor in quarantine.
    pub(crate) fn is_free(&self) -> bool {
        self.holders.is_none() && self.quarantine.is_none()
    }

    /// Another host is to have it as soon as its holds have ended: beside them nobody else is let in, or readers that
    /// overlap for ever would keep the other host waiting as long.
    pub(crate) fn is_promised_away(&self, now: Instant) -> bool {
        let Ownership::Owned(Owned { contention: Some(contention), .. }) = &self.ownership else { return false };
        contention.exhausted(now) && !self.is_free() && self.pinned_by().is_none()
    }

    /// Free, and nobody wants it.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_free() && self.queue.is_none() && self.coming == 0
    }

    pub(crate) fn waiters(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.len())
    }

    pub(crate) fn first_live(&self) -> Option<RequestIndex> {
        self.queue.as_ref()?.first_live()
    }

    pub(crate) fn first_try(&self) -> Option<RequestIndex> {
        self.queue.as_ref()?.first_try()
    }

    pub(crate) fn pinned_by(&self) -> Option<RequestIndex> {
        self.queue.as_ref()?.pinned_by
    }

    pub(crate) fn is_listed_idle(&self) -> bool {
        self.idle.is_some()
    }

    /// Takes the time of a hold that ended into the average, one eighth of it.
    pub(crate) fn learn_hold(&mut self, held: Duration) {
        let sample = u32::try_from(held.as_micros()).unwrap_or(u32::MAX);
        self.typical_hold_us = Some(match self.typical_hold_us {
            None => sample,
            Some(before) => before - before / 8 + sample / 8,
        });
    }
}

/// All tracked keys, and the list of the idle ones, longest idle first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys {
    /// Places only: the names are in the slab already. Nothing ever goes through it in its order.
    by_name: HashTable<KeyIndex>,
    /// Fast, and seeded at random, so that nobody can choose names that collide.
    hash_builder: DefaultHashBuilder,
    slab: Slab<Key>,
    owned: usize,
    first_idle: Option<KeyIndex>,
    last_idle: Option<KeyIndex>,
}

impl Keys {
    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn owned(&self) -> usize {
        self.owned
    }

    pub(crate) fn find(&self, name: &LockKey) -> Option<KeyIndex> {
        let hash = self.hash_builder.hash_one(name);
        let is_it = |index: &KeyIndex| self.slab.get(index.0 as usize).is_some_and(|key| key.name == *name);
        self.by_name.find(hash, is_it).copied()
    }

    pub(crate) fn insert(&mut self, name: LockKey) -> Step<KeyIndex> {
        let index = self.slab.insert(Key::new(name.clone()));
        let index = u32::try_from(index).map(KeyIndex).map_err(|_| Fault::Broken("the table of keys is full"))?;
        let hash = |name: &LockKey| self.hash_builder.hash_one(name);
        // The names of all keys that are in the table are in the slab.
        let rehash = |index: &KeyIndex| self.slab.get(index.0 as usize).map_or(0, |key| hash(&key.name));
        self.by_name.insert_unique(hash(&name), index, rehash);
        Ok(index)
    }

    pub(crate) fn get(&self, index: KeyIndex) -> Step<&Key> {
        self.slab.get(index.0 as usize).ok_or(Fault::Broken("no such key"))
    }

    pub(crate) fn get_mut(&mut self, index: KeyIndex) -> Step<&mut Key> {
        self.slab.get_mut(index.0 as usize).ok_or(Fault::Broken("no such key"))
    }

    pub(crate) fn has(&self, index: KeyIndex) -> bool {
        self.slab.contains(index.0 as usize)
    }

    /// The queue of a key that somebody waits for.
    pub(crate) fn queue_mut(&mut self, index: KeyIndex) -> Step<&mut Queue> {
        self.get_mut(index)?.queue.as_deref_mut().ok_or(Fault::Broken("the key has no queue"))
    }

    /// The key's ownership, if it is ours.
    pub(crate) fn owned_mut(&mut self, index: KeyIndex) -> Step<&mut Owned> {
        match &mut self.get_mut(index)?.ownership {
            Ownership::Owned(owned) => Ok(owned),
            _ => Err(Fault::Broken("the key is not ours")),
        }
    }

    /// Sets who owns the key, and returns who did.
    pub(crate) fn set_ownership(&mut self, index: KeyIndex, ownership: Ownership) -> Step<Ownership> {
        let to_ours = matches!(ownership, Ownership::Owned(_));
        let before = core::mem::replace(&mut self.get_mut(index)?.ownership, ownership);
        self.owned += usize::from(to_ours);
        self.owned -= usize::from(matches!(before, Ownership::Owned(_)));
        Ok(before)
    }

    pub(crate) fn forget(&mut self, index: KeyIndex) -> Step {
        self.unlist_idle(index)?;
        let key = self.slab.try_remove(index.0 as usize).ok_or(Fault::Broken("no such key"))?;
        self.owned -= usize::from(matches!(key.ownership, Ownership::Owned(_)));
        if let Ok(entry) = self.by_name.find_entry(self.hash_builder.hash_one(&key.name), |other| *other == index) {
            entry.remove();
        }
        Ok(())
    }

    /// How many places the table has; every index is below.
    pub(crate) fn places(&self) -> u32 {
        // The slab never shrinks, so this is a bound on every key it has.
        u32::try_from(self.slab.capacity()).unwrap_or(u32::MAX)
    }

    /// All keys, in an order that depends on nothing but past inputs.
    pub(crate) fn indices(&self) -> Vec<KeyIndex> {
        self.slab.iter().map(|(index, _)| KeyIndex(index as u32)).collect()
    }

    pub(crate) fn longest_idle(&self) -> Option<(KeyIndex, Instant)> {
        let index = self.first_idle?;
        let key = self.slab.get(index.0 as usize)?;
        key.idle.map(|links| (index, links.since))
    }

    pub(crate) fn list_idle(&mut self, index: KeyIndex, since: Instant) -> Step {
        let before = self.last_idle.replace(index);
        match before {
            Some(before) => self.idle_links(before)?.after = Some(index),
            None => self.first_idle = Some(index),
        }
        self.get_mut(index)?.idle = Some(IdleLinks { since, before, after: None });
        Ok(())
    }

    pub(crate) fn unlist_idle(&mut self, index: KeyIndex) -> Step {
        let Some(links) = self.get_mut(index)?.idle.take() else { return Ok(()) };
        match links.before {
            Some(before) => self.idle_links(before)?.after = links.after,
            None => self.first_idle = links.after,
        }
        match links.after {
            Some(after) => self.idle_links(after)?.before = links.before,
            None => self.last_idle = links.before,
        }
        Ok(())
    }

    fn idle_links(&mut self, index: KeyIndex) -> Step<&mut IdleLinks> {
        self.get_mut(index)?.idle.as_mut().ok_or(Fault::Broken("the list of idle keys is torn"))
    }

    /// The places that will be taken next, in that order.
    #[cfg(feature = "model")]
    pub(crate) fn vacant(&self) -> Vec<usize> {
        LockKey::parse("vacant")
            .map_or_else(|_| Vec::new(), |name| crate::fingerprint::vacant(&self.slab, &Key::new(name)))
    }

    #[cfg(any(test, debug_assertions, feature = "mutations"))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (KeyIndex, &Key)> {
        self.slab.iter().map(|(index, key)| (KeyIndex(index as u32), key))
    }

    #[cfg(any(test, debug_assertions, feature = "mutations"))]
    pub(crate) fn walk_idle(&self) -> impl Iterator<Item = (KeyIndex, Instant)> {
        let links =
            |index: KeyIndex| self.slab.get(index.0 as usize).and_then(|key| key.idle).map(|idle| (index, idle));
        let first = self.first_idle.and_then(links);
        core::iter::successors(first, move |(_, idle)| idle.after.and_then(links))
            .take(self.slab.len() + 1)
            .map(|(index, idle)| (index, idle.since))
    }
}
