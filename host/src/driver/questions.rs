//! What people who look at the locks ask, and what operators order: answered by the engine's own task, between events.

use std::collections::HashMap;

use tokio::sync::oneshot;
use turnstile_core::{ForcedDelay, Input, Instant, KeyDescription, LockKey, SessionId, Token};

use super::Driver;

/// Holders, and waiters, that the description of a single key has at most; and the oldest holds of a key, that orders
/// can be about.
pub const DETAILS_MAX: usize = 1_000;

/// Holders, and waiters, of each key of a listing.
const LISTED_DETAILS_MAX: usize = 4;

/// Places of the table that one listing looks at.
pub const LOOKS_MAX: u32 = 1_000;

/// Asked of the driver.
#[derive(Debug)]
pub enum Question {
    /// One key with so many details, [`DETAILS_MAX`] at most; the answer has it, or no key.
    Key(LockKey, usize, oneshot::Sender<Answer>),
    /// Some of the keys.
    Keys(Listing, oneshot::Sender<Answer>),
    /// Not a question but an order: end these holds.
    ForceRelease(ForceRelease, oneshot::Sender<Forced>),
}

/// Which keys are listed.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Where to look on.
    pub from: u32,
    /// How their names begin.
    pub prefix: String,
    /// Also those that nobody holds or waits for, and that are in no quarantine.
    pub idle: bool,
    /// Not more than so many, [`LOOKS_MAX`] at most.
    pub keys_max: u32,
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Answer {
    /// When.
    pub now: Instant,
    /// In no order that means anything.
    pub keys: Vec<KeyDescription>,
    /// The sessions of all holders and waiters in `keys`.
    pub clients: HashMap<SessionId, Client>,
    /// Where to look on; `None` at the end.
    pub next: Option<u32>,
}

/// Who is at the other end of a session, in its own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// The proxy's name, or that of a user of the API.
    pub node: String,
    /// Which of its workers.
    pub worker: String,
}

/// An operator's order.
#[derive(Clone, Debug)]
pub struct ForceRelease {
    /// Of this key.
    pub key: LockKey,
    /// Which of its holds.
    pub target: Target,
    /// What becomes of the quarantine.
    pub delay: ForcedDelay,
}

/// What is to be released.
#[derive(Clone, Debug)]
pub enum Target {
    /// The hold of this token.
    Hold(Token),
    /// The key as it was seen and recorded: all of these holds, and its quarantine if that is to be skipped. Whoever
    /// came later is spared.
    Key(Vec<Token>),
}

/// What became of the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forced {
    /// Carried out.
    Told {
        /// Those that were still there, and were told; none if it was about a quarantine.
        tokens: Vec<Token>,
        /// The key is in quarantine all the same.
        quarantined: bool,
    },
    /// The key is not as it was seen.
    Changed,
}

impl Question {
    /// How much work it is, in items.
    pub(super) fn work(&self) -> usize {
        match self {
            Self::Key(..) | Self::ForceRelease(..) => DETAILS_MAX,
            Self::Keys(..) => LOOKS_MAX as usize,
        }
    }
}

impl Driver {
    /// Whoever asked may be gone; then the answer is nobody's.
    pub(super) fn answer(&mut self, now: Instant, question: Question) {
        match question {
            Question::Key(key, details, reply) => {
                let keys = self.engine.describe(&key, details.min(DETAILS_MAX)).into_iter().collect();
                let _ = reply.send(self.seen(now, keys, None));
            }
            Question::Keys(listing, reply) => {
                let (keys, next) = self.list(&listing);
                let _ = reply.send(self.seen(now, keys, next));
            }
            Question::ForceRelease(order, reply) => {
                let _ = reply.send(self.force_release(now, order));
            }
        }
    }

    /// Never looks at more places than would fill the listing, so that no key that was seen is left out of it.
    fn list(&self, listing: &Listing) -> (Vec<KeyDescription>, Option<u32>) {
        let mut keys = Vec::new();
        let (mut next, mut looks_left) = (Some(listing.from), LOOKS_MAX);
        while let Some(from) = next
            && let keys_left = listing.keys_max.saturating_sub(u32::try_from(keys.len()).unwrap_or(u32::MAX))
            && let looks = keys_left.min(looks_left)
            && looks > 0
        {
            let page = self.engine.describe_some(from, looks, &listing.prefix, LISTED_DETAILS_MAX);
            keys.extend(page.keys.into_iter().filter(|key| listing.idle || is_busy(key)));
            next = page.next;
            looks_left -= looks;
        }
        (keys, next)
    }

    fn seen(&self, now: Instant, keys: Vec<KeyDescription>, next: Option<u32>) -> Answer {
        let sessions = keys.iter().flat_map(|key| {
            let holders = key
                .holders
                .iter()
                .flat_map(|holder| std::iter::once(&holder.holder).chain(&holder.joined).map(|holder| holder.session));
            holders.chain(key.waiters.iter().map(|waiter| waiter.holder.session))
        });
        let named = |session| Some((session, self.connections.client(session)?.clone()));
        Answer { now, clients: sessions.filter_map(named).collect(), keys, next }
    }

    fn force_release(&mut self, now: Instant, order: ForceRelease) -> Forced {
        let ForceRelease { key, target, delay } = order;
        let Some(before) = self.engine.describe(&key, DETAILS_MAX) else { return Forced::Changed };
        let (meant, whole) = match target {
            Target::Hold(token) => (vec![token], false),
            Target::Key(seen) => (seen, true),
        };
        let mut holds = before.holders.iter().map(|holder| holder.token);
        let tokens: Vec<Token> = holds.clone().filter(|token| meant.contains(token)).collect();
        let lifts = whole && delay == ForcedDelay::Skip && before.quarantined_until.is_some();
        let has_others = before.holder_count > before.holders.len() || holds.any(|token| !meant.contains(&token));
        if tokens.is_empty() && (!lifts || has_others) {
            return Forced::Changed;
        }
        if whole && !has_others {
            self.feed(now, Input::ForceRelease { key: key.clone(), token: None, delay });
        } else {
            for token in &tokens {
                self.feed(now, Input::ForceRelease { key: key.clone(), token: Some(*token), delay });
            }
        }
        let quarantined = self.engine.describe(&key, 0).is_some_and(|key| key.quarantined_until.is_some());
        Forced::Told { tokens, quarantined }
    }
}

fn is_busy(key: &KeyDescription) -> bool {
    key.holder_count > 0 || key.waiter_count > 0 || key.quarantined_until.is_some()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::sync::mpsc;
    use turnstile_core::{
        Acquire, ClaimId, Config, Ending, Engine, Epoch, HeartbeatSeq, KeyRequest, Mode, RequestId, smallvec,
    };
    use turnstile_protocol::v1;

    use super::*;
    use crate::driver::Health;
    use crate::store::{Operation, Store};

    const NOW: Instant = Instant::from_micros(1_000_000);
    const SESSION: SessionId = SessionId(1);

    struct SilentStore;

    impl Store for SilentStore {
        fn submit(&self, _: Operation) {}
    }

    fn key() -> LockKey {
        LockKey::parse("default/a").unwrap()
    }

    /// A driver whose host owns the key.
    fn driver() -> Driver {
        let (_, store_events) = mpsc::unbounded_channel();
        let (_, events) = mpsc::channel(1);
        let (engine, health) = (Engine::new(Config::default()), Arc::new(Health::new(NOW)));
        let welcome = v1::Welcome::default();
        let mut driver = Driver::new(engine, Box::new(SilentStore), store_events, events, welcome, health);
        driver.feed(NOW, Input::LeaseRenewed { until: NOW + Duration::from_secs(60) });
        driver.feed(NOW, Input::OpenSession { session: SESSION, seq: HeartbeatSeq(1) });
        driver
    }

    fn acquire(driver: &mut Driver, request: u64, mode: Mode) -> Token {
        let keys = smallvec![KeyRequest { key: key(), mode }];
        let lock_delay = Duration::from_secs(10);
        let acquire = Acquire { keys, lock_delay, ..Acquire::of_key(RequestId(request), key()) };
        driver.feed(NOW, Input::Acquire { session: SESSION, acquire });
        if !driver.engine.owns(&key()) {
            let (claim, epoch, lock_delay) = (ClaimId(1), Epoch(1), Duration::from_secs(10));
            let gained =
                Input::OwnershipGained { key: key(), claim, epoch, lock_delay, quarantined_until: Instant::default() };
            driver.feed(NOW, gained);
        }
        driver.engine.describe(&key(), 10).unwrap().holders.last().expect("it is granted").token
    }

    fn release(driver: &mut Driver, request: u64, ending: Ending) {
        driver.feed(NOW, Input::Release { session: SESSION, request: RequestId(request), ending });
    }

    fn force(driver: &mut Driver, target: Target, delay: ForcedDelay) -> Forced {
        driver.force_release(NOW, ForceRelease { key: key(), target, delay })
    }

    fn told(tokens: &[Token], quarantined: bool) -> Forced {
        Forced::Told { tokens: tokens.to_vec(), quarantined }
    }

    fn ending(driver: &Driver) -> Vec<bool> {
        let key = driver.engine.describe(&key(), 10).unwrap();
        key.holders.iter().map(|holder| holder.ending.is_some()).collect()
    }

    #[test]
    fn whoever_came_after_the_look_is_spared() {
        let mut driver = driver();
        let seen = [acquire(&mut driver, 1, Mode::Shared), acquire(&mut driver, 2, Mode::Shared)];
        release(&mut driver, 1, Ending::Clean);
        acquire(&mut driver, 3, Mode::Shared);
        let forced = force(&mut driver, Target::Key(seen.into()), ForcedDelay::Skip);
        assert_eq!(forced, told(&seen[1..], false));
        assert_eq!(ending(&driver), [true, false]);
        assert_eq!(force(&mut driver, Target::Key(vec![seen[0]]), ForcedDelay::Skip), Forced::Changed);
        assert_eq!(force(&mut driver, Target::Hold(seen[0]), ForcedDelay::Keep), Forced::Changed);
        assert_eq!(ending(&driver), [true, false]);
    }

    #[test]
    fn a_quarantine_is_lifted_only_if_nobody_came_meanwhile() {
        let mut driver = driver();
        acquire(&mut driver, 1, Mode::Shared);
        release(&mut driver, 1, Ending::Unclean);
        // A reader comes in beside what one of its kind left behind.
        acquire(&mut driver, 2, Mode::Shared);
        assert_eq!(force(&mut driver, Target::Key(Vec::new()), ForcedDelay::Skip), Forced::Changed);
        assert_eq!(ending(&driver), [false]);
        release(&mut driver, 2, Ending::Clean);
        assert_eq!(force(&mut driver, Target::Key(Vec::new()), ForcedDelay::Keep), Forced::Changed);
        assert_eq!(force(&mut driver, Target::Key(Vec::new()), ForcedDelay::Skip), told(&[], false));
        acquire(&mut driver, 3, Mode::Exclusive);
    }

    #[test]
    fn what_a_dead_host_left_is_not_lifted() {
        let mut driver = driver();
        let request = Acquire { wait: Duration::from_secs(60), ..Acquire::of_key(RequestId(1), key()) };
        driver.feed(NOW, Input::Acquire { session: SESSION, acquire: request });
        let (claim, epoch, lock_delay) = (ClaimId(1), Epoch(1), Duration::ZERO);
        let quarantined_until = NOW + Duration::from_secs(9);
        driver.feed(NOW, Input::OwnershipGained { key: key(), claim, epoch, lock_delay, quarantined_until });
        assert_eq!(force(&mut driver, Target::Key(Vec::new()), ForcedDelay::Skip), told(&[], true));
        assert_eq!(driver.engine.describe(&key(), 1).unwrap().holder_count, 0);
    }

    #[test]
    fn an_unknown_key_is_nobodys() {
        let mut driver = driver();
        assert_eq!(force(&mut driver, Target::Key(Vec::new()), ForcedDelay::Skip), Forced::Changed);
    }

    #[test]
    fn a_listing_looks_at_so_many_places_and_no_more() {
        let mut driver = driver();
        for number in 0..1_500 {
            let name = LockKey::parse(&format!("default/{number}")).unwrap();
            let acquire = Acquire::of_key(RequestId(number + 1), name);
            driver.feed(NOW, Input::Acquire { session: SESSION, acquire });
        }
        let list = |from, prefix: &str, idle, keys_max| {
            let (keys, next) = driver.list(&Listing { from, prefix: prefix.into(), idle, keys_max });
            (keys.len(), next)
        };
        assert_eq!(list(0, "", true, 1_000), (1_000, Some(1_000)));
        assert_eq!(list(0, "other", true, 1), (0, Some(1_000)));
        assert_eq!(list(0, "", true, 7), (7, Some(7)));
        assert_eq!(list(1_000, "", true, 1_000).0, 500);
        assert_eq!(list(u32::MAX, "", true, 1_000), (0, None));
        assert_eq!(list(0, "default/149", true, 1_000), (1, Some(1_000)));
    }
}
