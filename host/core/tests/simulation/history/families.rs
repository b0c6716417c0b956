//! Which holds of one host were joined to which, as its grants told.

use std::collections::{BTreeMap, BTreeSet};

use turnstile_core::{HolderId, HolderSecret, LockKey, Mode};

/// The families of one run of a host. A member whose end the host decided by itself stays, until its client or its
/// session ends it: so a family here may have more members than are left.
#[derive(Debug, Default)]
pub(crate) struct Families {
    by_secret: BTreeMap<[u8; 16], Family>,
}

#[derive(Debug, Default)]
pub(crate) struct Family {
    pub(crate) members: BTreeMap<HolderId, Member>,
    /// No member's hold lasts longer, by the host's clock.
    pub(crate) limit: u64,
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) tokens: BTreeMap<LockKey, u64>,
    /// It was not told that its hold is lost: it is a member for sure.
    pub(crate) sure: bool,
}

impl Families {
    pub(crate) fn get(&self, secret: HolderSecret) -> Option<&Family> {
        self.by_secret.get(&secret.0)
    }

    pub(crate) fn join(&mut self, secret: HolderSecret, holder: HolderId, tokens: BTreeMap<LockKey, u64>, limit: u64) {
        let family = self.by_secret.entry(secret.0).or_insert_with(|| Family { members: BTreeMap::new(), limit });
        family.members.insert(holder, Member { tokens, sure: true });
    }

    pub(crate) fn lose(&mut self, holder: HolderId) {
        for family in self.by_secret.values_mut() {
            if let Some(member) = family.members.get_mut(&holder) {
                member.sure = false;
            }
        }
    }

    /// True if it was in one.
    pub(crate) fn leave(&mut self, holder: HolderId) -> bool {
        let mut found = false;
        self.by_secret.retain(|_, family| {
            found |= family.members.remove(&holder).is_some();
            !family.members.is_empty()
        });
        found
    }
}

impl Family {
    /// The keys that members may have.
    pub(crate) fn keys(&self) -> BTreeSet<&LockKey> {
        self.members.values().flat_map(|member| member.tokens.keys()).collect()
    }

    /// The tokens of a key that members may have.
    pub(crate) fn tokens(&self, key: &LockKey) -> BTreeSet<u64> {
        self.members.values().filter_map(|member| member.tokens.get(key)).copied().collect()
    }

    pub(crate) fn surely_lives(&self) -> bool {
        self.members.values().any(|member| member.sure)
    }

    pub(crate) fn surely_has(&self, key: &LockKey) -> bool {
        self.members.values().any(|member| member.sure && member.tokens.contains_key(key))
    }
}

/// Whether who holds in mode `held` may do all that `wanted` allows, with nobody else let in by that.
pub(crate) fn covers(held: Mode, wanted: Mode) -> bool {
    match (held, wanted) {
        (Mode::Exclusive, _) | (Mode::Shared, Mode::Shared) => true,
        (Mode::Limit(held), Mode::Limit(wanted)) => wanted >= held,
        _ => false,
    }
}
