//! The requests that wait or hold, in one table; queues and keys only know their indices.

use core::time::Duration;

use slab::Slab;

use crate::fault::{Fault, Step};
use crate::keys::{KeyIndex, Ticket};
use crate::{HolderId, Instant, LostReason, Mode, Token};

/// A place in the table of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestIndex(pub(crate) u32);

/// A waiter or a hold.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) holder: HolderId,
    /// One key; several will be granted together.
    pub(crate) key: KeyIndex,
    /// Always exclusive for now; decides whether holds are compatible.
    #[allow(dead_code)]
    pub(crate) mode: Mode,
    pub(crate) hold_max: Duration,
    pub(crate) lock_delay: Duration,
    pub(crate) since: Instant,
    pub(crate) stage: Stage,
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
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) ticket: Ticket,
    pub(crate) deadline: Instant,
    /// When its own wait ends; earlier than the deadline while the store alone keeps it waiting.
    pub(crate) own_deadline: Instant,
    pub(crate) patience: Patience,
    pub(crate) place: Place,
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
    pub(crate) token: Token,
    pub(crate) granted: Instant,
    pub(crate) limit: Instant,
}

/// All requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests {
    slab: Slab<Request>,
    holds: usize,
}

impl Requests {
    /// Where the next request will stand.
    pub(crate) fn next_index(&self) -> Step<RequestIndex> {
        let index = self.slab.vacant_key();
        u32::try_from(index).map(RequestIndex).map_err(|_| Fault::Broken("the table of requests is full"))
    }

    pub(crate) fn insert(&mut self, request: Request) -> Step<RequestIndex> {
        let index = self.slab.insert(request);
        u32::try_from(index).map(RequestIndex).map_err(|_| Fault::Broken("the table of requests is full"))
    }

    pub(crate) fn get(&self, index: RequestIndex) -> Step<&Request> {
        self.slab.get(index.0 as usize).ok_or(Fault::Broken("no such request"))
    }

    /// The request's waiting stage; a fault if it is a hold.
    pub(crate) fn waiting(&mut self, index: RequestIndex) -> Step<&mut Waiting> {
        match self.slab.get_mut(index.0 as usize).map(|request| &mut request.stage) {
            Some(Stage::Waiting(waiting)) => Ok(waiting),
            Some(_) => Err(Fault::Broken("a hold stands in a queue")),
            None => Err(Fault::Broken("no such waiter")),
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
