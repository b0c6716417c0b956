//! How a request comes in: what it asks for is found, what cannot be is refused at once, and it joins its first queue.

use core::time::Duration;

use crate::engine::Phase;
use crate::families::{FamilyIndex, Kin};
use crate::fault::{Fault, Step};
use crate::keys::{Key, KeyIndex};
use crate::mutation::Mutation;
use crate::requests::{KeyUse, Part, Patience, Place, Request, RequestIndex, Stage, Uses, Waiting};
use crate::sessions::Link;
use crate::timers::Timer;
use crate::{
    Acquire, Command, Engine, HolderId, HolderSecret, KeyRequest, LockKey, Mode, Reentry, RejectReason, RequestId,
    SessionId,
};

/// A request that is refused, and the key to blame, if it is one's.
struct Refusal(RejectReason, Option<KeyUse>);

/// The outcome of a look at a request.
type Admission<T = ()> = Step<Result<T, Refusal>>;

/// The family to join, and what a request may then ask for.
struct Joining {
    family: Option<FamilyIndex>,
    /// It adds a key that does not sort behind all that the family has: it must not wait, or two families could wait
    /// for each other.
    out_of_order: bool,
}

impl Engine {
    pub(crate) fn acquire(&mut self, session: SessionId, acquire: Acquire) -> Step {
        if !self.knows_session(session) {
            return Ok(());
        }
        let request = acquire.request;
        let seen = self.sessions.get(session)?.last_request;
        if seen.is_some_and(|last| request <= last) {
            if self.sessions.request(HolderId { session, request }).is_none() {
                self.reject(session, request, RejectReason::Invalid, None)?;
            }
            return Ok(());
        }
        self.admit(session, acquire)
    }

    /// Takes a request that has no place yet.
    pub(crate) fn admit(&mut self, session: SessionId, mut acquire: Acquire) -> Step {
        let request = acquire.request;
        let known = self.sessions.get_mut(session)?;
        known.last_request = known.last_request.max(Some(request));
        if known.requests.contains_key(&request) {
            return Ok(());
        }
        if let Err(Refusal(reason, _)) = self.look_at_bounds(session)? {
            return self.reject(session, request, reason, None);
        }
        let mut uses = Uses::new();
        let outcome = match self.find_keys(&acquire, &mut uses)? {
            Ok(()) => self.look_at_keys(&mut acquire, &mut uses)?,
            Err(refusal) => Err(refusal),
        };
        match outcome {
            Ok(family) => self.enqueue(session, acquire, uses, family),
            Err(Refusal(reason, to_blame)) => {
                self.reject(session, request, reason, to_blame)?;
                for used in uses {
                    self.keys.get_mut(used.key)?.coming -= 1;
                    self.pump(used.key)?;
                }
                Ok(())
            }
        }
    }

    fn look_at_bounds(&self, session: SessionId) -> Admission {
        let refused = |reason| Ok(Err(Refusal(reason, None)));
        let known = self.sessions.get(session)?;
        if self.phase != Phase::Serving {
            refused(RejectReason::Draining)
        } else if known.waiters >= self.config.waiters_per_session_max
            || known.requests.len() - known.waiters >= self.config.holds_per_session_max
        {
            refused(RejectReason::SessionFull)
        } else if self.requests.waiters() >= self.config.waiters_max {
            refused(RejectReason::QueueFull)
        } else {
            Ok(Ok(()))
        }
    }

    /// Finds or begins to track the keys. Those in `uses` are kept from being forgotten, also if one is refused.
    fn find_keys(&mut self, acquire: &Acquire, uses: &mut Uses) -> Admission {
        let names: &[KeyRequest] = &acquire.keys;
        if names.is_empty() || names.len() > Acquire::KEYS_MAX {
            return Ok(Err(Refusal(RejectReason::Invalid, None)));
        }
        for (asked, KeyRequest { key: name, mode }) in (0_u8..).zip(names) {
            let Some(key) = self.find_key(name)? else { return Ok(Err(Refusal(RejectReason::KeysFull, None))) };
            if uses.iter().any(|used| used.key == key) {
                return Ok(Err(Refusal(RejectReason::Invalid, None)));
            }
            self.keys.get_mut(key)?.coming += 1;
            // Not to be given up for the room that the next one needs.
            self.keys.unlist_idle(key)?;
            uses.push(KeyUse { key, asked, part: Part::Bears, mode: *mode, token: None });
        }
        // The same order on every host: who waits for a key has only smaller ones, so nobody waits in a circle.
        if uses.len() > 1 {
            uses.sort_by(|left, right| self.name_of(left.key).cmp(&self.name_of(right.key)));
        }
        Ok(Ok(()))
    }

    fn name_of(&self, key: KeyIndex) -> Option<&LockKey> {
        self.keys.get(key).ok().map(|key| &key.name)
    }

    fn find_key(&mut self, name: &LockKey) -> Step<Option<KeyIndex>> {
        match self.keys.find(name) {
            Some(key) => Ok(Some(key)),
            None if self.make_room()? => Ok(Some(self.keys.insert(name.clone())?)),
            None => Ok(None),
        }
    }

    /// True if one more key may be tracked; gives up the one that has been idle longest if that helps.
    fn make_room(&mut self) -> Step<bool> {
        while self.keys.len() >= self.config.keys_max {
            if self.mutated(Mutation::EvictInQuarantine) {
                self.lift_quarantines()?;
            }
            let Some((idle, _)) = self.keys.longest_idle() else { return Ok(false) };
            self.yield_ownership(idle)?;
            self.pump(idle)?;
        }
        Ok(true)
    }

    fn lift_quarantines(&mut self) -> Step {
        for index in self.keys.indices() {
            if self.keys.get(index)?.holders.len() == 0 && self.keys.get(index)?.coming == 0 {
                self.lift_quarantine(index)?;
                self.pump(index)?;
            }
        }
        Ok(())
    }

    /// What the keys say to the request; it may come out as a try.
    fn look_at_keys(&self, acquire: &mut Acquire, uses: &mut Uses) -> Admission<Option<FamilyIndex>> {
        let joining = match acquire.reentry {
            Reentry::Join(secret) => match self.look_at_family(secret, uses)? {
                Ok(joining) => joining,
                Err(reason) => return Ok(Err(Refusal(reason, None))),
            },
            Reentry::None | Reentry::Offer(_) => Joining { family: None, out_of_order: false },
        };
        let wait = if joining.out_of_order { Duration::ZERO } else { acquire.wait };
        acquire.wait = wait.min(self.config.wait_max);
        let queue_max = acquire.queue_max.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
        for used in uses.iter().filter(|used| used.part == Part::Bears) {
            let key = self.keys.get(used.key)?;
            if acquire.wait.is_zero() && !would_be_next(key, used.mode) {
                return Ok(Err(Refusal(RejectReason::Conflict, Some(*used))));
            }
            // It counts itself among those that are coming.
            let waiters = key.waiters() + key.coming as usize - 1;
            if waiters >= self.config.waiters_per_key_max.min(queue_max) {
                return Ok(Err(Refusal(RejectReason::QueueFull, Some(*used))));
            }
            let hopeless = acquire.fail_fast
                && !would_be_next(key, used.mode)
                && key.estimate(self.now, used.mode).is_some_and(|estimate| estimate > acquire.wait);
            if hopeless {
                return Ok(Err(Refusal(RejectReason::WaitHopeless, Some(*used))));
            }
        }
        Ok(Ok(joining.family))
    }

    fn enqueue(&mut self, session: SessionId, acquire: Acquire, uses: Uses, family: Option<FamilyIndex>) -> Step {
        let now = self.now;
        let (patience, wait) = self.patience(acquire.wait);
        let known = self.sessions.get_mut(session)?;
        let place = match known.link {
            Link::Connected => Place::Live,
            Link::Suspended => Place::PassedOver,
        };
        known.waiters += 1;
        self.last_order += 1;
        // They are idle no longer.
        let later: Uses = uses.iter().skip(1).copied().collect();
        let own_deadline = now + wait;
        let index = self.requests.insert(Request {
            holder: HolderId { session, request: acquire.request },
            uses,
            hold_max: acquire.hold.unwrap_or(self.config.hold_max).min(self.config.hold_max),
            lock_delay: acquire.lock_delay.min(self.config.lock_delay_max),
            since: now,
            order: self.last_order,
            kin: match (family, acquire.reentry) {
                (Some(family), _) => Kin::Of(family),
                (None, Reentry::Offer(secret)) => Kin::Founder(Box::new(secret)),
                (None, Reentry::None | Reentry::Join(_)) => Kin::None,
            },
            stage: Stage::Waiting(Waiting { deadline: own_deadline, own_deadline, patience, place, queues: 0 }),
            who: acquire.who,
        })?;
        self.sessions.get_mut(session)?.requests.insert(acquire.request, index);
        if let Some(family) = family {
            self.families.get_mut(family)?.waiting.insert(index);
        }
        if self.is_next_at_once(index)? {
            return self.grant(index);
        }
        self.timers.set(own_deadline, Timer::WaitOver(index));
        self.join_next_queue(index)?;
        for used in later {
            self.pump(used.key)?;
        }
        Ok(())
    }

    fn patience(&self, wait: Duration) -> (Patience, Duration) {
        if wait.is_zero() { (Patience::Try, self.config.claim_patience) } else { (Patience::Wait, wait) }
    }

    /// The request queues for one more of its keys.
    pub(crate) fn join_next_queue(&mut self, index: RequestIndex) -> Step {
        let queues = self.requests.waiting(index)?.queues;
        let used = self.requests.get(index)?.uses.get(usize::from(queues)).copied();
        let used = used.ok_or(Fault::Broken("a request queues for what it has not asked"))?;
        let stretched = used.part == Part::Bears && self.waits_for_store_alone(used.key)?;
        let at_once = used.part == Part::Joins || would_be_next(self.keys.get(used.key)?, used.mode);
        // What the store has used up of its wait at an earlier key is not held against it if nobody is in its way here.
        if stretched || !at_once {
            self.stretch_wait(index, stretched)?;
        }
        let entry = self.entry(index, used)?;
        let lock_delay = self.requests.get(index)?.lock_delay;
        let waiting = self.requests.waiting(index)?;
        waiting.queues += 1;
        let place = waiting.place;
        let key = self.keys.get_mut(used.key)?;
        key.coming -= 1;
        key.queue.get_or_insert_default().push(entry, place, lock_delay);
        self.pump(used.key)
    }

    /// Whether nothing but the store's answer stands between the key and one more waiter. Its wait is then stretched to
    /// the claim patience: however short, it must not end before the store can have answered.
    fn waits_for_store_alone(&self, key: KeyIndex) -> Step<bool> {
        let key = self.keys.get(key)?;
        Ok(key.ownership.is_unanswered() && key.is_free() && key.waiters() == 0)
    }

    /// What the family says to one more who would join it.
    fn look_at_family(&self, secret: HolderSecret, uses: &mut Uses) -> Step<Result<Joining, RejectReason>> {
        let Some(index) = self.families.find(secret) else { return Ok(Err(RejectReason::NoSuchHold)) };
        let family = self.families.get(index)?;
        if family.members.len() + family.waiting.len() > self.config.joins_per_hold_max {
            return Ok(Err(RejectReason::QueueFull));
        }
        let bonds = self.bonds(index)?;
        if !bonds.iter().any(|bond| bond.live) {
            return Ok(Err(RejectReason::NoSuchHold));
        }
        let largest = bonds.iter().filter_map(|bond| self.name_of(bond.key)).max();
        let upgrades = self.mutated(Mutation::UpgradeJoined);
        let mut out_of_order = false;
        for used in uses.iter_mut() {
            let mut had = bonds.iter().filter(|bond| bond.key == used.key).peekable();
            if had.peek().is_none() {
                out_of_order |= self.name_of(used.key) < largest;
            } else if had.clone().any(|bond| bond.live && (bond.covers(used.mode) || upgrades)) {
                used.part = Part::Joins;
            } else if had.any(|bond| bond.live) {
                return Ok(Err(RejectReason::Upgrade));
            } else {
                return Ok(Err(RejectReason::NoSuchHold));
            }
        }
        Ok(Ok(Joining { family: Some(index), out_of_order }))
    }

    /// Says why, and when it may be worth another try for the key that is to blame.
    pub(crate) fn reject(
        &mut self,
        session: SessionId,
        request: RequestId,
        reason: RejectReason,
        to_blame: Option<KeyUse>,
    ) -> Step {
        let (queue_length, retry_after) = match to_blame {
            None => (0, None),
            Some(used) => {
                let key = self.keys.get(used.key)?;
                let hint = match reason {
                    RejectReason::Conflict
                    | RejectReason::WaitTimeout
                    | RejectReason::QueueFull
                    | RejectReason::WaitHopeless => key.estimate(self.now, used.mode),
                    _ => None,
                };
                (key.waiters(), hint)
            }
        };
        self.emit(Command::Reject { session, request, reason, retry_after, queue_length });
        Ok(())
    }
}

/// Whether a request in this mode would be granted as soon as the store and the lease allow.
fn would_be_next(key: &Key, mode: Mode) -> bool {
    key.admits(mode) && key.first_live().is_none()
}
