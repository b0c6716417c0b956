//! A host as the tests see it: claims go in, events come out, whether it lives in this process or in one of its own.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use turnstile_core::{ClaimId, Epoch, Instant, LockKey};
use turnstile_host::clock;
use turnstile_host::store::{Event, Operation, Store, StoreError};

use super::Harness;
use super::process::Process;

/// No test waits longer for an event; a failure then prints what came instead.
const PATIENCE: Duration = Duration::from_secs(30);

/// One incarnation after the other of one host.
pub struct Host {
    link: Link,
    /// Events that came while another was waited for.
    aside: VecDeque<Event>,
    /// How many of those came before the last one waited for.
    before_wait: usize,
    claims: u64,
    /// What was submitted last for a key.
    last: HashMap<LockKey, Operation>,
    /// Whether a claim that failed for the moment is submitted again, as the driver does it.
    pub retry: bool,
    /// The latest instant until which this host may believe in its lease.
    pub leased_until: Instant,
}

enum Link {
    Here { store: Arc<dyn Store>, events: UnboundedReceiver<Event> },
    Process(Process),
}

/// What `Event::Gained` says.
#[derive(Clone, Debug)]
pub struct Gained {
    pub claim: ClaimId,
    pub epoch: Epoch,
    pub lock_delay: Duration,
    pub quarantined_until: Instant,
    /// When the test saw it.
    pub seen: Instant,
}

pub fn key(text: &str) -> LockKey {
    LockKey::parse(text).unwrap()
}

impl Host {
    /// In this process; has its lease.
    pub async fn start(harness: &impl Harness) -> Self {
        let (store, events) = harness.open().await;
        Self::with(Link::Here { store, events }).await
    }

    /// In a process of its own; has its lease.
    pub async fn spawn(harness: &impl Harness) -> Self {
        Self::with(Link::Process(Process::spawn(harness.command()))).await
    }

    async fn with(link: Link) -> Self {
        let mut host = Self {
            link,
            aside: VecDeque::new(),
            before_wait: 0,
            claims: 0,
            last: HashMap::new(),
            retry: true,
            leased_until: Instant::default(),
        };
        host.renewed().await;
        host
    }

    pub fn submit(&mut self, operation: Operation) {
        if let Operation::Claim { key, .. } | Operation::Yield { key } = &operation {
            self.last.insert(key.clone(), operation.clone());
        }
        match &mut self.link {
            Link::Here { store, .. } => store.submit(operation),
            Link::Process(process) => process.submit(&operation),
        }
    }

    pub fn claim(&mut self, key: &LockKey, lock_delay: Duration) -> ClaimId {
        self.claim_as(key, lock_delay, false)
    }

    pub fn claim_as(&mut self, key: &LockKey, lock_delay: Duration, new_epoch: bool) -> ClaimId {
        self.claims += 1;
        let claim = ClaimId(self.claims);
        self.submit(Operation::Claim { key: key.clone(), claim, lock_delay, new_epoch });
        claim
    }

    pub fn give_up(&mut self, key: &LockKey) {
        self.submit(Operation::Yield { key: key.clone() });
    }

    /// Claims a key that nobody has.
    pub async fn take(&mut self, key: &LockKey, lock_delay: Duration) -> Gained {
        self.claim(key, lock_delay);
        self.gained(key).await
    }

    /// Claims a key that somebody has, and waits until the claim is in the queue.
    pub async fn queue_for(&mut self, key: &LockKey, lock_delay: Duration) {
        let claim = self.claim(key, lock_delay);
        self.wait("Queued", |event| matches!(event, Event::Queued { key: k, claim: c } if k == key && *c == claim))
            .await;
    }

    pub async fn gained(&mut self, key: &LockKey) -> Gained {
        let event = self.wait("Gained", |event| matches!(event, Event::Gained { key: k, .. } if k == key)).await;
        let Event::Gained { claim, epoch, lock_delay, quarantined_until, .. } = event else { unreachable!() };
        Gained { claim, epoch, lock_delay, quarantined_until, seen: clock::now() }
    }

    pub async fn contended(&mut self, key: &LockKey) {
        self.wait("Contended", |event| matches!(event, Event::Contended { key: k } if k == key)).await;
    }

    pub async fn failed(&mut self, key: &LockKey) -> StoreError {
        let event = self.wait("Failed", |event| matches!(event, Event::Failed { key: k, .. } if k == key)).await;
        let Event::Failed { error, .. } = event else { unreachable!() };
        error
    }

    /// Waits for the next renewal from now on.
    pub async fn renewed(&mut self) -> Instant {
        let before = self.leased_until;
        while self.leased_until <= before {
            let event = self.next("LeaseRenewed").await;
            self.aside.push_back(event);
        }
        self.leased_until
    }

    /// After this, whatever was submitted before is answered, and whatever others wrote before is noticed.
    pub async fn settle(&mut self) {
        for _ in 0..3 {
            self.renewed().await;
        }
    }

    pub async fn lease_lost(&mut self) {
        self.wait("LeaseLost", |event| *event == Event::LeaseLost).await;
    }

    pub async fn lost(&mut self, key: &LockKey) {
        self.wait("Lost", |event| matches!(event, Event::Lost { key: k } if k == key)).await;
    }

    pub async fn end_lease(&mut self) {
        self.submit(Operation::EndLease);
        self.wait("LeaseEnded", |event| *event == Event::LeaseEnded).await;
    }

    /// Dies without a word.
    pub async fn kill(mut self) -> Instant {
        while let Some(event) = self.try_next() {
            self.aside.push_back(event);
        }
        let leased_until = self.leased_until;
        match self.link {
            // Joins a thread.
            Link::Here { store, .. } => tokio::task::spawn_blocking(move || drop(store)).await.unwrap(),
            Link::Process(mut process) => process.kill(),
        }
        leased_until
    }

    /// Stops it right after a renewal: one that is stopped in the middle of a write may hold a lock of the store, and
    /// then nobody gets any further (which is safe, but not what these tests are about).
    pub async fn freeze(&mut self) {
        self.renewed().await;
        self.process().freeze();
    }

    pub fn thaw(&mut self) {
        self.process().thaw();
    }

    fn process(&mut self) -> &mut Process {
        match &mut self.link {
            Link::Process(process) => process,
            Link::Here { .. } => panic!("only a host with a process of its own can be frozen"),
        }
    }

    /// How many events that came so far, and were not waited for, fulfil `wanted`; they stay.
    pub fn count(&mut self, wanted: impl Fn(&Event) -> bool) -> usize {
        while let Some(event) = self.try_next() {
            self.aside.push_back(event);
        }
        self.aside.iter().filter(|event| wanted(event)).count()
    }

    /// Forgets what came so far.
    pub fn drain(&mut self) {
        while self.try_next().is_some() {}
        self.aside.clear();
        self.before_wait = 0;
    }

    /// Of the events that came before the one waited for last.
    pub fn count_before_last_wait(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.aside.iter().take(self.before_wait).filter(|event| wanted(event)).count()
    }

    pub fn has_gained(&mut self, key: &LockKey) -> bool {
        self.count(|event| matches!(event, Event::Gained { key: k, .. } if k == key)) > 0
    }

    pub async fn wait(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        if let Some(at) = self.aside.iter().position(&wanted) {
            return self.aside.remove(at).unwrap();
        }
        let since = clock::now();
        loop {
            let event = self.next(what).await;
            assert!(
                clock::now().saturating_since(since) < PATIENCE,
                "no {what} within {PATIENCE:?}; the store reported {:?}",
                self.aside.iter().filter(|event| !matches!(event, Event::LeaseRenewed { .. })).collect::<Vec<_>>()
            );
            if wanted(&event) {
                self.before_wait = self.aside.len();
                return event;
            }
            self.aside.push_back(event);
        }
    }

    async fn next(&mut self, what: &str) -> Event {
        loop {
            let next = async {
                match &mut self.link {
                    Link::Here { events, .. } => events.recv().await,
                    Link::Process(process) => process.events.recv().await,
                }
            };
            let event = match tokio::time::timeout(PATIENCE, next).await {
                Ok(Some(event)) => event,
                Ok(None) => panic!("the store is gone while waiting for {what}; it reported {:?}", self.aside),
                Err(_) => panic!("no {what} within {PATIENCE:?}; the store reported {:?}", self.aside),
            };
            if self.note(&event) == Noted::Reported {
                return event;
            }
        }
    }

    fn try_next(&mut self) -> Option<Event> {
        loop {
            let event = match &mut self.link {
                Link::Here { events, .. } => events.try_recv(),
                Link::Process(process) => process.events.try_recv(),
            };
            let event = event.ok()?;
            if self.note(&event) == Noted::Reported {
                return Some(event);
            }
        }
    }

    fn note(&mut self, event: &Event) -> Noted {
        match event {
            Event::LeaseRenewed { until } => self.leased_until = *until,
            Event::LeaseLost => self.leased_until = Instant::default(),
            Event::Failed { key, claim, error: StoreError::Unavailable(_) | StoreError::Ambiguous(_) }
                if self.retry =>
            {
                let again = self.last.get(key).cloned();
                if let Some(operation @ Operation::Claim { claim: last, .. }) = again
                    && last == *claim
                {
                    self.submit(operation);
                }
                return Noted::Retried;
            }
            _ => {}
        }
        Noted::Reported
    }
}

#[derive(PartialEq)]
enum Noted {
    Reported,
    Retried,
}
