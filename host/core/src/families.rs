//! Families: a hold that others may join, and those that did. They share its keys, and the last to go frees them.

use std::collections::{BTreeMap, BTreeSet};

use core::time::Duration;

use hashbrown::HashMap;
use slab::Slab;

use crate::fault::{Fault, Step};
use crate::keys::KeyIndex;
use crate::mutation::Mutation;
use crate::requests::{KeyUse, Part, Request, RequestIndex, Stage};
use crate::{Engine, HolderSecret, Instant, Mode, RejectReason, Token};

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
    /// No member's hold lasts longer.
    pub(crate) limit: Instant,
    pub(crate) members: BTreeSet<RequestIndex>,
    /// Requests that wait to join.
    pub(crate) waiting: BTreeSet<RequestIndex>,
    /// The largest lock delays of members that ended uncleanly, for holds of keys which others still use.
    pub(crate) unclean: BTreeMap<(KeyIndex, Token), Duration>,
}

/// A key that a family has. It may have one twice, if two of its members came by it independently.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bond {
    pub(crate) key: KeyIndex,
    pub(crate) token: Token,
    /// How the one who bears it holds it.
    pub(crate) mode: Mode,
    /// Somebody who uses it was not told that it is lost.
    pub(crate) live: bool,
}

impl Bond {
    /// Whether who uses the key by this bond may do all that `wanted` allows, with nobody else let in by that.
    pub(crate) fn covers(&self, wanted: Mode) -> bool {
        match (self.mode, wanted) {
            (Mode::Exclusive, _) | (Mode::Shared, Mode::Shared) => true,
            (Mode::Limit(held), Mode::Limit(wanted)) => held <= wanted,
            _ => false,
        }
    }
}

impl Family {
    pub(crate) fn new(secret: HolderSecret, limit: Instant, founder: RequestIndex) -> Self {
        let members = BTreeSet::from([founder]);
        Self { secret, limit, members, waiting: BTreeSet::new(), unclean: BTreeMap::new() }
    }
}

/// All families.
#[derive(Clone, Debug, Default)]
pub(crate) struct Families {
    by_secret: HashMap<HolderSecret, FamilyIndex>,
    slab: Slab<Family>,
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
        Ok(Some(FamilyIndex(index)))
    }

    pub(crate) fn forget(&mut self, index: FamilyIndex) -> Step<Family> {
        let family = self.slab.try_remove(index.0 as usize).ok_or(Fault::Broken("no such family"))?;
        self.by_secret.remove(&family.secret);
        Ok(family)
    }

    /// The places that will be taken next, in that order.
    #[cfg(feature = "model")]
    pub(crate) fn vacant(&self) -> Vec<usize> {
        let filler = Family::new(HolderSecret([0; 16]), Instant::default(), RequestIndex(0));
        crate::fingerprint::vacant(&self.slab, &filler)
    }

    #[cfg(any(test, debug_assertions, feature = "mutations"))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (FamilyIndex, &Family)> {
        self.slab.iter().map(|(index, family)| (FamilyIndex(index as u32), family))
    }
}

impl Engine {
    /// A new hold becomes a member of the family that it waited for, or founds the one that it offered.
    pub(crate) fn join_family(&mut self, index: RequestIndex, limit: Instant) -> Step {
        let request = self.requests.get_mut(index)?;
        match core::mem::take(&mut request.kin) {
            Kin::None => {}
            Kin::Of(family) => {
                let entry = self.families.get_mut(family)?;
                entry.waiting.remove(&index);
                entry.members.insert(index);
                self.requests.get_mut(index)?.kin = Kin::Of(family);
            }
            // A secret that is another one's already was not random; nobody can join then.
            Kin::Founder(secret) => {
                if let Some(family) = self.families.found(Family::new(*secret, limit, index))? {
                    self.requests.get_mut(index)?.kin = Kin::Of(family);
                }
            }
        }
        Ok(())
    }

    /// The keys that the family has.
    pub(crate) fn bonds(&self, family: FamilyIndex) -> Step<Vec<Bond>> {
        let mut bonds: BTreeMap<(KeyIndex, Token), (Option<Mode>, bool)> = BTreeMap::new();
        for member in &self.families.get(family)?.members {
            let request = self.requests.get(*member)?;
            for used in &request.uses {
                let token = used.token.ok_or(Fault::Broken("a hold without a token"))?;
                let (mode, live) = bonds.entry((used.key, token)).or_default();
                *mode = mode.or((used.part == Part::Bears).then_some(used.mode));
                *live |= matches!(request.stage, Stage::Holding(_));
            }
        }
        let bond = |((key, token), (mode, live))| Some(Bond { key, token, mode: mode?, live });
        Ok(bonds.into_iter().filter_map(bond).collect())
    }

    /// What who wants to use this key may join.
    pub(crate) fn bond_for(&self, family: FamilyIndex, wanted: &KeyUse) -> Step<Option<Bond>> {
        let upgrades = self.mutated(Mutation::UpgradeJoined);
        let fits = |bond: &Bond| bond.key == wanted.key && bond.live && (bond.covers(wanted.mode) || upgrades);
        Ok(self.bonds(family)?.into_iter().find(fits))
    }

    /// What the member bore for others is borne on by one of them; what nobody else uses is free.
    pub(crate) fn leave_family(
        &mut self,
        index: RequestIndex,
        request: &Request,
        family: FamilyIndex,
        quarantine: Option<Duration>,
        held: Duration,
    ) -> Step {
        self.families.get_mut(family)?.members.remove(&index);
        for used in &request.uses {
            let token = used.token.ok_or(Fault::Broken("a hold without a token"))?;
            let mut others = self.users_of(family, used.key, token)?;
            if used.part == Part::Joins && self.mutated(Mutation::JoinCountedTwice) {
                others.clear();
            }
            let unclean = &mut self.families.get_mut(family)?.unclean;
            match others.first() {
                None => {
                    let left_behind = unclean.remove(&(used.key, token));
                    self.free_key(*used, left_behind.max(quarantine), held)?;
                }
                Some(heir) => {
                    if let Some(delay) = quarantine {
                        let before = unclean.entry((used.key, token)).or_default();
                        *before = delay.max(*before);
                    }
                    if used.part == Part::Bears {
                        self.pass_on(*used, token, *heir)?;
                    }
                }
            }
        }
        self.turn_away_from(family)?;
        if self.families.get(family)?.members.is_empty() {
            self.families.forget(family)?;
        }
        Ok(())
    }

    /// The members that use this hold of the key.
    pub(crate) fn users_of(&self, family: FamilyIndex, key: KeyIndex, token: Token) -> Step<Vec<RequestIndex>> {
        let mut users = Vec::new();
        for member in &self.families.get(family)?.members {
            let uses = &self.requests.get(*member)?.uses;
            if uses.iter().any(|used| used.key == key && used.token == Some(token)) {
                users.push(*member);
            }
        }
        Ok(users)
    }

    fn pass_on(&mut self, used: KeyUse, token: Token, heir: RequestIndex) -> Step {
        self.keys.get_mut(used.key)?.holders.pass_on(token, heir);
        let inherited = self.requests.get_mut(heir)?.uses.iter_mut().find(|own| own.key == used.key);
        let inherited = inherited.ok_or(Fault::Broken("a request does not use its key"))?;
        // As strict as before: others were let in, or kept out, by the mode that stands among the holders.
        *inherited = KeyUse { part: Part::Bears, mode: used.mode, ..*inherited };
        Ok(())
    }

    /// A hold was told that it is lost: nobody joins it any more.
    pub(crate) fn turn_away_joiners(&mut self, lost: RequestIndex) -> Step {
        match self.requests.get(lost)?.kin {
            Kin::Of(family) => self.together(|engine| engine.turn_away_from(family)),
            Kin::None | Kin::Founder(_) => Ok(()),
        }
    }

    /// Who waits to join what the family does not have any more waits for nothing.
    fn turn_away_from(&mut self, family: FamilyIndex) -> Step {
        let waiting: Vec<RequestIndex> = self.families.get(family)?.waiting.iter().copied().collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let bonds = self.bonds(family)?;
        for request in waiting {
            let can_join =
                |used: &KeyUse| bonds.iter().any(|bond| bond.key == used.key && bond.live && bond.covers(used.mode));
            let uses = &self.requests.get(request)?.uses;
            let joins = uses.iter().filter(|used| used.part == Part::Joins).all(can_join);
            if !joins || !bonds.iter().any(|bond| bond.live) {
                self.answer_waiter(request, RejectReason::NoSuchHold)?;
            }
        }
        Ok(())
    }
}
