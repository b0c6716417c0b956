//! Families: a hold that others may join, and those that did. They share its keys, and the last to go frees them.

use std::collections::{BTreeMap, BTreeSet};

use core::time::Duration;

use hashbrown::HashMap;
use slab::Slab;

use crate::fault::{Fault, Step};
use crate::keys::KeyIndex;
use crate::requests::RequestIndex;
use crate::{HolderSecret, Instant};

/// A place in the table of families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FamilyIndex(u32);

/// What a request has to do with a family.
#[derive(Clone, Debug, Default)]
pub(crate) enum Kin {
    #[default]
    None,
    /// Its hold will found one.
    Founder(Box<HolderSecret>),
    /// It is of this family, or waits to be.
    Of(FamilyIndex),
}

/// One hold in the eyes of the key, several in those of the sessions. Each key that it has is *borne* by one member;
/// when that one ends while others use the key too, one of them bears it on, under the same token.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    pub(crate) secret: HolderSecret,
    /// The founder's place among all requests: whoever joins need not queue behind those that wait for the family.
    pub(crate) order: u64,
    /// No member's hold lasts longer.
    pub(crate) limit: Instant,
    pub(crate) members: BTreeSet<RequestIndex>,
    /// Requests that wait to join.
    pub(crate) waiting: BTreeSet<RequestIndex>,
    /// The largest lock delays of members that ended uncleanly, for keys which others still use.
    pub(crate) unclean: BTreeMap<KeyIndex, Duration>,
}

impl Family {
    pub(crate) fn new(secret: HolderSecret, order: u64, limit: Instant, founder: RequestIndex) -> Self {
        let members = BTreeSet::from([founder]);
        Self { secret, order, limit, members, waiting: BTreeSet::new(), unclean: BTreeMap::new() }
    }
}

/// All families.
#[derive(Clone, Debug, Default)]
pub(crate) struct Families {
    by_secret: HashMap<HolderSecret, FamilyIndex>,
    slab: Slab<Family>,
    /// Places to be taken again, the next one last, as the slab has them.
    #[cfg(feature = "model")]
    pub(crate) vacant: Vec<u32>,
}

impl Families {
    pub(crate) fn find(&self, secret: HolderSecret) -> Option<FamilyIndex> {
        self.by_secret.get(&secret).copied()
    }

    pub(crate) fn get(&self, index: FamilyIndex) -> Step<&Family> {
        self.slab.get(index.0 as usize).ok_or(Fault::Broken("no such family"))
    }

    pub(crate) fn get_mut(&mut self, index: FamilyIndex) -> Step<&mut Family> {
        self.slab.get_mut(index.0 as usize).ok_or(Fault::Broken("no such family"))
    }

    /// A new family; `None` if the secret is another one's already.
    pub(crate) fn found(&mut self, family: Family) -> Step<Option<FamilyIndex>> {
        if self.by_secret.contains_key(&family.secret) {
            return Ok(None);
        }
        let secret = family.secret;
        let index =
            u32::try_from(self.slab.insert(family)).map_err(|_| Fault::Broken("the table of families is full"))?;
        self.by_secret.insert(secret, FamilyIndex(index));
        #[cfg(feature = "model")]
        self.vacant.pop();
        Ok(Some(FamilyIndex(index)))
    }

    pub(crate) fn forget(&mut self, index: FamilyIndex) -> Step<Family> {
        let family = self.slab.try_remove(index.0 as usize).ok_or(Fault::Broken("no such family"))?;
        self.by_secret.remove(&family.secret);
        #[cfg(feature = "model")]
        self.vacant.push(index.0);
        Ok(family)
    }

    #[cfg(any(test, debug_assertions, feature = "mutations"))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (FamilyIndex, &Family)> {
        self.slab.iter().map(|(index, family)| (FamilyIndex(index as u32), family))
    }
}
