//! The requests that wait or hold, in one table; queues and keys only know their indices.

use core::time::Duration;

use slab::Slab;
use smallvec::SmallVec;

use crate::families::Kin;
use crate::fault::{Fault, Step};
use crate::input::ForcedDelay;
use crate::keys::KeyIndex;
use crate::{HolderId, Instant, LostReason, Mode, Token, Who};

/// A place in the table of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestIndex(pub(crate) u32);

/// A waiter or a hold.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) holder: HolderId,
    /// Its keys, in the order of their names: that in which it queues for them.
    pub(crate) uses: Uses,
    pub(crate) hold_max: Duration,
    pub(crate) lock_delay: Duration,
    pub(crate) since: Instant,
    /// Its place among all requests of this engine.
    pub(crate) order: u64,
    pub(crate) kin: Kin,
    pub(crate) stage: Stage,
    pub(crate) who: Option<Box<Who>>,
}

pub(crate) type Uses = SmallVec<[KeyUse; 1]>;

/// One key of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyUse {
    pub(crate) key: KeyIndex,
    /// Its place in the acquire.
    pub(crate) asked: u8,
    pub(crate) part: Part,
    pub(crate) mode: Mode,
    /// Of a hold.
    pub(crate) token: Option<Token>,
}

/// How a request has, or will have, a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// By itself: it is among the key's holders.
    Bears,
    /// Its family has the key already; another member is among the holders.
    Joins,
}

/// How far a request has come.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stage {
    Waiting(Waiting),
    Holding(Hold),
    /// Told `Lost`, which its client has not confirmed: it still counts, until this promise has passed.
    Ending {
        hold: Hold,
        reason: LostReason,
        promise: Instant,
        delay: ForcedDelay,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) deadline: Instant,
    /// When its own wait ends; earlier than the deadline while the store alone keeps it waiting.
    pub(crate) own_deadline: Instant,
    pub(crate) patience: Patience,
    pub(crate) place: Place,
    /// It stands in the queues of so many of its keys: it has all but the last of them, as far as it can.
    pub(crate) queues: u8,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Only for the store.
    Try,
    /// For its turn.
    Wait,
}

/// Whether a waiter's turn can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Live,
    /// Its session is suspended or has gone quiet: it keeps its ticket, others go first.
    PassedOver,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold {
    pub(crate) granted: Instant,
    pub(crate) limit: Instant,
}

/// All requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests {
    slab: Slab<Request>,
    holds: usize,
}

impl Request {
    /// The keys whose queues it stands in; a fault if it does not wait.
    pub(crate) fn queued(&self) -> Step<&[KeyUse]> {
        let Stage::Waiting(waiting) = &self.stage else { return Err(Fault::Broken("a hold stands in a queue")) };
        self.uses.get(..usize::from(waiting.queues)).ok_or(Fault::Broken("a request queues for what it has not asked"))
    }

    /// The last key that it queues for: the one that it waits for.
    pub(crate) fn frontier(&self) -> Step<KeyUse> {
        self.queued()?.last().copied().ok_or(Fault::Broken("a waiter stands in no queue"))
    }

    /// What it asks of this key.
    pub(crate) fn use_of(&self, key: KeyIndex) -> Step<KeyUse> {
        self.uses.iter().find(|used| used.key == key).copied().ok_or(Fault::Broken("a request does not use its key"))
    }
}

impl Requests {
    pub(crate) fn insert(&mut self, request: Request) -> Step<RequestIndex> {
        let index = self.slab.insert(request);
        u32::try_from(index).map(RequestIndex).map_err(|_| Fault::Broken("the table of requests is full"))
    }

    pub(crate) fn get(&self, index: RequestIndex) -> Step<&Request> {
        self.slab.get(index.0 as usize).ok_or(Fault::Broken("no such request"))
    }

    pub(crate) fn get_mut(&mut self, index: RequestIndex) -> Step<&mut Request> {
        self.slab.get_mut(index.0 as usize).ok_or(Fault::Broken("no such request"))
    }

    /// The request's waiting stage; a fault if it is a hold.
    pub(crate) fn waiting(&mut self, index: RequestIndex) -> Step<&mut Waiting> {
        match &mut self.get_mut(index)?.stage {
            Stage::Waiting(waiting) => Ok(waiting),
            _ => Err(Fault::Broken("a hold stands in a queue")),
        }
    }

    pub(crate) fn set_stage(&mut self, index: RequestIndex, stage: Stage) -> Step {
        let request = self.slab.get_mut(index.0 as usize).ok_or(Fault::Broken("no such request"))?;
        self.holds -= usize::from(request.stage.is_hold());
        self.holds += usize::from(stage.is_hold());
        request.stage = stage;
        Ok(())
    }

    pub(crate) fn remove(&mut self, index: RequestIndex) -> Step<Request> {
        let request = self.slab.try_remove(index.0 as usize).ok_or(Fault::Broken("no such request"))?;
        self.holds -= usize::from(request.stage.is_hold());
        Ok(request)
    }

    pub(crate) fn holds(&self) -> usize {
        self.holds
    }

    pub(crate) fn waiters(&self) -> usize {
        self.slab.len() - self.holds
    }

    /// The places that will be taken next, in that order.
    #[cfg(feature = "model")]
    pub(crate) fn vacant(&self) -> Vec<usize> {
        let filler = Request {
            holder: HolderId { session: crate::SessionId(0), request: crate::RequestId(0) },
            uses: Uses::new(),
            hold_max: Duration::ZERO,
            lock_delay: Duration::ZERO,
            since: Instant::default(),
            order: 0,
            kin: Kin::None,
            stage: Stage::Holding(Hold { granted: Instant::default(), limit: Instant::default() }),
            who: None,
        };
        crate::fingerprint::vacant(&self.slab, &filler)
    }

    #[cfg(any(test, debug_assertions, feature = "mutations"))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (RequestIndex, &Request)> {
        self.slab.iter().map(|(index, request)| (RequestIndex(index as u32), request))
    }
}

impl Stage {
    pub(crate) fn is_hold(&self) -> bool {
        !matches!(self, Self::Waiting(_))
    }
}
