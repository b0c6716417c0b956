//! A host as the tests see it: claims go in, events come out, whether it lives in this process or in one of its own.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
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
    events: UnboundedReceiver<Event>,
    /// Events that came while another was waited for.
    aside: VecDeque<Event>,
    /// How many of those came before the last one waited for.
    before_wait: usize,
    claims: u64,
    retries: Arc<Retries>,
    /// The latest instant until which this host may believe in its lease.
    pub leased_until: Instant,
}

enum Link {
    Here(Arc<dyn Store>),
    Process(Process),
}

/// What was submitted last for each key, and whether to do so again.
#[derive(Default)]
struct Retries {
    last: Mutex<HashMap<LockKey, Operation>>,
    off: AtomicBool,
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
        let weak = Arc::downgrade(&store);
        let resubmit = move |operation| {
            if let Some(store) = weak.upgrade() {
                store.submit(operation);
            }
        };
        Self::with(Link::Here(store), events, resubmit).await
    }

    /// In a process of its own; has its lease.
    pub async fn spawn(harness: &impl Harness) -> Self {
        let (process, events) = Process::spawn(harness.command());
        let input = process.input();
        Self::with(Link::Process(process), events, move |operation| input.submit(&operation)).await
    }

    async fn with(
        link: Link,
        mut raw: UnboundedReceiver<Event>,
        resubmit: impl Fn(Operation) + Send + 'static,
    ) -> Self {
        let (sender, events) = unbounded_channel();
        let retries = Arc::new(Retries::default());
        let pump = Arc::clone(&retries);
        tokio::spawn(async move {
            while let Some(event) = raw.recv().await {
                match pump.again(&event) {
                    Some(operation) => resubmit(operation),
                    None => drop(sender.send(event)),
                }
            }
        });
        let (aside, leased_until) = (VecDeque::new(), Instant::default());
        let mut host = Self { link, events, aside, before_wait: 0, claims: 0, retries, leased_until };
        host.renewed().await;
        host
    }

    /// From now on, claims that fail for the moment are reported instead of submitted again.
    pub fn report_failures(&self) {
        self.retries.off.store(true, Ordering::Relaxed);
    }

    pub fn submit(&mut self, operation: Operation) {
        if let Operation::Claim { key, .. } | Operation::Yield { key } = &operation {
            self.retries.last.lock().unwrap().insert(key.clone(), operation.clone());
        }
        match &self.link {
            Link::Here(store) => store.submit(operation),
            Link::Process(process) => process.input().submit(&operation),
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
            Link::Here(store) => tokio::task::spawn_blocking(move || drop(store)).await.unwrap(),
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
            Link::Here(_) => panic!("only a host with a process of its own can be frozen"),
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
        let event = match tokio::time::timeout(PATIENCE, self.events.recv()).await {
            Ok(Some(event)) => event,
            Ok(None) => panic!("the store is gone while waiting for {what}; it reported {:?}", self.aside),
            Err(_) => panic!("no {what} within {PATIENCE:?}; the store reported {:?}", self.aside),
        };
        self.note(&event);
        event
    }

    fn try_next(&mut self) -> Option<Event> {
        let event = self.events.try_recv().ok()?;
        self.note(&event);
        Some(event)
    }

    fn note(&mut self, event: &Event) {
        match event {
            Event::LeaseRenewed { until } => self.leased_until = *until,
            Event::LeaseLost => self.leased_until = Instant::default(),
            _ => {}
        }
    }
}

impl Retries {
    /// A claim that failed for the moment, and was the last that was asked for its key, is submitted again, as the
    /// driver does it.
    fn again(&self, event: &Event) -> Option<Operation> {
        let Event::Failed { key, claim, error: StoreError::Unavailable(_) | StoreError::Ambiguous(_) } = event else {
            return None;
        };
        if self.off.load(Ordering::Relaxed) {
            return None;
        }
        let last = self.last.lock().unwrap().get(key).cloned();
        last.filter(|last| matches!(last, Operation::Claim { claim: last, .. } if last == claim))
    }
}
