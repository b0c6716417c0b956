//! What clients, hosts and the store say to each other, small enough to be told apart by their hashes.

use std::hash::{Hash, Hasher};

use turnstile_core::{ClaimId, Ending, SessionId, View};

use crate::judge::HeldKey;
use crate::names::{Names, left, until};

/// A waiting request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) request: u64,
    /// Which alternative of the script it is.
    pub(crate) choice: usize,
    /// The wait that is left to it.
    pub(crate) wait: u64,
}

/// From a client.
#[derive(Clone, Debug)]
pub(crate) enum ToHost {
    Hello { seq: u64, resume: Option<(SessionId, Beliefs)> },
    Heartbeat { seq: u64 },
    Acquire(Wanted),
    Cancel(u64),
    Release(u64, Ending),
}

/// What a client that comes back believes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beliefs {
    pub(crate) waiters: Vec<Wanted>,
    pub(crate) holds: Vec<u64>,
    pub(crate) releases: Vec<(u64, Ending)>,
}

/// From a host.
#[derive(Clone, Debug)]
pub(crate) enum ToClient {
    Welcome { session: SessionId, resumed: bool },
    Grant { request: u64, held: Vec<HeldKey>, seq: u64, valid: u64 },
    Reject { request: u64 },
    Lost { request: u64 },
    Ack { seq: u64, valid: u64 },
}

/// The wish to own a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) key: usize,
    pub(crate) claim: ClaimId,
    /// What the record is to remember.
    pub(crate) lock_delay: u64,
    pub(crate) new_epoch: bool,
}

/// To the store.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Claim(Claim),
    Yield {
        key: usize,
    },
    /// The instant at which it was sent comes back, to anchor the lease at.
    KeepAlive {
        sent: u64,
    },
}

/// From the store.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Gained { key: usize, claim: ClaimId, epoch: u64, lock_delay: u64, quarantine_left: u64 },
    Queued { key: usize, claim: ClaimId },
    Contended { key: usize },
    LeaseRenewed { sent: u64 },
    LeaseLost,
}

impl Wanted {
    fn feed(&self, hasher: &mut impl Hasher) {
        (self.request, self.choice, left(self.wait)).hash(hasher);
    }
}

impl ToHost {
    pub(crate) fn feed(&self, client: usize, names: &Names<'_>, hasher: &mut impl Hasher) {
        match self {
            Self::Hello { seq, resume } => {
                (0_u8, names.age(client, *seq), resume.is_some()).hash(hasher);
                if let Some((session, beliefs)) = resume {
                    (names.session(*session), &beliefs.holds, &beliefs.releases).hash(hasher);
                    beliefs.waiters.len().hash(hasher);
                    beliefs.waiters.iter().for_each(|wanted| wanted.feed(hasher));
                }
            }
            Self::Heartbeat { seq } => (1_u8, names.age(client, *seq)).hash(hasher),
            Self::Acquire(wanted) => {
                2_u8.hash(hasher);
                wanted.feed(hasher);
            }
            Self::Cancel(request) => (3_u8, request).hash(hasher),
            Self::Release(request, ending) => (4_u8, request, ending).hash(hasher),
        }
    }
}

impl ToClient {
    pub(crate) fn feed(&self, client: usize, names: &Names<'_>, hasher: &mut impl Hasher) {
        match self {
            Self::Welcome { session, resumed } => (0_u8, names.session(*session), resumed).hash(hasher),
            Self::Grant { request, held, seq, valid } => {
                (1_u8, request, names.age(client, *seq), valid).hash(hasher);
                held.iter().for_each(|held| held.feed(names, hasher));
            }
            Self::Reject { request } => (2_u8, request).hash(hasher),
            Self::Lost { request } => (3_u8, request).hash(hasher),
            Self::Ack { seq, valid } => (4_u8, names.age(client, *seq), valid).hash(hasher),
        }
    }
}

impl Operation {
    pub(crate) fn feed(&self, names: &Names<'_>, hasher: &mut impl Hasher) {
        match self {
            Self::Claim(Claim { key, claim, lock_delay, new_epoch }) => {
                (0_u8, key, names.claims_since(*claim), lock_delay, new_epoch).hash(hasher);
            }
            Self::Yield { key } => (1_u8, key).hash(hasher),
            Self::KeepAlive { sent } => (2_u8, until(names.now, *sent)).hash(hasher),
        }
    }
}

impl Event {
    pub(crate) fn feed(&self, names: &Names<'_>, hasher: &mut impl Hasher) {
        match self {
            Self::Gained { key, claim, epoch, lock_delay, quarantine_left } => {
                let epoch = names.epoch_of(*key, *epoch);
                (0_u8, key, names.claims_since(*claim), epoch, lock_delay, quarantine_left).hash(hasher);
            }
            Self::Queued { key, claim } => (1_u8, key, names.claims_since(*claim)).hash(hasher),
            Self::Contended { key } => (2_u8, key).hash(hasher),
            Self::LeaseRenewed { sent } => (3_u8, until(names.now, *sent)).hash(hasher),
            Self::LeaseLost => 4_u8.hash(hasher),
        }
    }
}
