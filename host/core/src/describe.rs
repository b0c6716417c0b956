//! What people who look at the locks are told: plain data, read and never acted on.

use core::time::Duration;

use crate::families::Kin;
use crate::keys::{KeyIndex, Ownership};
use crate::requests::{Place, Request, RequestIndex, Stage};
use crate::{Engine, HolderId, Instant, LockKey, LostReason, Mode, Token, Who};

/// One tracked key.
#[derive(Clone, Debug)]
pub struct KeyDescription {
    /// Its name.
    pub key: LockKey,
    /// What the store says of it.
    pub ownership: OwnershipDescription,
    /// Its holds, oldest token first; at most as many as were asked for.
    pub holders: Vec<HolderDescription>,
    /// How many holds it has.
    pub holder_count: usize,
    /// The first of those that wait for it, in their order; at most as many as were asked for.
    pub waiters: Vec<WaiterDescription>,
    /// How many wait for it.
    pub waiter_count: usize,
    /// Earlier work may not be over before then: nothing is granted that it could get in the way of.
    pub quarantined_until: Option<Instant>,
    /// The newest token that was given out here.
    pub last_token: Option<Token>,
}

/// Whether the key is ours in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnershipDescription {
    /// No.
    None,
    /// Asked for.
    Claiming,
    /// Another live host has it, and knows that we want it.
    Queued,
    /// Yes.
    Owned,
    /// Yes, and another host wants it.
    Contended,
}

/// A hold of a key.
#[derive(Clone, Debug)]
pub struct HolderDescription {
    /// Whose it is.
    pub holder: HolderId,
    /// How it is held.
    pub mode: Mode,
    /// Requests that joined this hold of the key; at most as many as were asked for.
    pub joined: Vec<HolderId>,
    /// Its token of this key.
    pub token: Token,
    /// When it was granted.
    pub since: Instant,
    /// When it will have lasted as long as it may.
    pub limit: Instant,
    /// It was told `Lost`, and its client may believe in it until then.
    pub ending: Option<(LostReason, Instant)>,
    /// Who asked for it.
    pub who: Option<Who>,
}

/// A request that waits for a key.
#[derive(Clone, Debug)]
pub struct WaiterDescription {
    /// Whose it is.
    pub holder: HolderId,
    /// How it wants to hold the key.
    pub mode: Mode,
    /// For how long it has waited.
    pub waited: Duration,
    /// When its wait ends.
    pub deadline: Instant,
    /// Its session is connected and was heard of lately, so that its turn can come.
    pub live: bool,
    /// Who asks.
    pub who: Option<Who>,
}

/// Some of the tracked keys.
#[derive(Clone, Debug)]
pub struct KeyPage {
    /// What was found, in no order that means anything.
    pub keys: Vec<KeyDescription>,
    /// Where to look on; `None` at the end. Keys that come or go between two looks may be seen or not.
    pub next: Option<u32>,
}

impl Engine {
    /// The key, with at most `details` of its holders and of its waiters; `None` if it is not tracked here.
    pub fn describe(&self, key: &LockKey, details: usize) -> Option<KeyDescription> {
        self.describe_at(self.keys.find(key)?, details)
    }

    /// Looks at up to `looks` places of the table from place `from` on, for keys whose names begin with `prefix`; each
    /// is described with at most `details` of its holders and of its waiters.
    pub fn describe_some(&self, from: u32, looks: u32, prefix: &str, details: usize) -> KeyPage {
        let end = from.saturating_add(looks);
        let keys = (from..end.min(self.keys.places()))
            .filter(|index| self.keys.get(KeyIndex(*index)).is_ok_and(|key| key.name.as_str().starts_with(prefix)))
            .filter_map(|index| self.describe_at(KeyIndex(index), details))
            .collect();
        KeyPage { keys, next: (end < self.keys.places()).then_some(end) }
    }

    fn describe_at(&self, index: KeyIndex, details: usize) -> Option<KeyDescription> {
        let key = self.keys.get(index).ok()?;
        let requests = |index: &crate::requests::RequestIndex| self.requests.get(*index).ok();
        let holders = key.holders.iter().filter_map(|holder| self.describe_holder(holder, index, details));
        let queue = key.queue.as_ref();
        let waiters = queue.into_iter().flat_map(|queue| queue.iter()).map(|entry| entry.request).take(details);
        Some(KeyDescription {
            key: key.name.clone(),
            ownership: match &key.ownership {
                Ownership::None => OwnershipDescription::None,
                Ownership::Claiming { queued: false, .. } => OwnershipDescription::Claiming,
                Ownership::Claiming { queued: true, .. } => OwnershipDescription::Queued,
                Ownership::Owned(owned) if owned.contention.is_some() => OwnershipDescription::Contended,
                Ownership::Owned(_) => OwnershipDescription::Owned,
            },
            holders: holders.take(details).collect(),
            holder_count: key.holders.len(),
            waiters: waiters.filter_map(|waiter| self.describe_waiter(requests(&waiter)?, index)).collect(),
            waiter_count: key.waiters(),
            quarantined_until: key.quarantine.max(key.holders.last_lingering()),
            last_token: key.last_token,
        })
    }

    fn describe_waiter(&self, request: &Request, key: KeyIndex) -> Option<WaiterDescription> {
        let Stage::Waiting(waiting) = request.stage else { return None };
        Some(WaiterDescription {
            holder: request.holder,
            mode: request.use_of(key).ok()?.mode,
            waited: self.now.saturating_since(request.since),
            deadline: waiting.deadline,
            live: waiting.place == Place::Live,
            who: request.who.as_deref().cloned(),
        })
    }

    fn describe_holder(&self, index: RequestIndex, key: KeyIndex, details: usize) -> Option<HolderDescription> {
        let request = self.requests.get(index).ok()?;
        let (hold, ending) = match request.stage {
            Stage::Waiting(_) => return None,
            Stage::Holding(hold) => (hold, None),
            Stage::Ending { hold, reason, promise, .. } => (hold, Some((reason, promise))),
        };
        let used = request.use_of(key).ok()?;
        let users = match (&request.kin, used.token) {
            (Kin::Of(family), Some(token)) => self.users_of(*family, key, token).unwrap_or_default(),
            _ => Vec::new(),
        };
        let joined = users.into_iter().filter(|user| *user != index).take(details);
        Some(HolderDescription {
            holder: request.holder,
            mode: used.mode,
            joined: joined.filter_map(|user| Some(self.requests.get(user).ok()?.holder)).collect(),
            token: used.token?,
            since: hold.granted,
            limit: hold.limit,
            ending,
            who: request.who.as_deref().cloned(),
        })
    }
}
