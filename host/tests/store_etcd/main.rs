//! The etcd store: the conformance suite on one member and on three, and what only etcd has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod access;
mod chaos;
mod cluster;
#[path = "../conformance/mod.rs"]
mod conformance;
mod crowd;
mod hands;
mod network;
mod restore;

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use conformance::Harness;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use turnstile_core::Instant;
use turnstile_host::store::etcd::{Config, EtcdStore};
use turnstile_host::store::{Event, Store};
use turnstile_tests::etcd::{Etcd, EtcdConfig};

/// The shortest that etcd allows with fast elections.
const LEASE_TTL: Duration = Duration::from_secs(1);
/// For tests in which nobody may lose its lease to an election.
const LONG_TTL: Duration = Duration::from_secs(4);
/// etcd looks for leases that ran out every 500 ms, and an election makes all of them longer.
const EXPIRY_SLACK: Duration = Duration::from_secs(3);
/// Tell a child process of this test binary where its store is.
const CHILD_ENDPOINTS: &str = "TURNSTILE_TEST_ENDPOINTS";
const CHILD_PREFIX: &str = "TURNSTILE_TEST_PREFIX";
const CHILD_TTL: &str = "TURNSTILE_TEST_TTL_MS";

/// A prefix of its own in some etcd.
struct Place {
    config: Config,
    /// Runs at least as long as this.
    _shared: Option<Arc<Etcd>>,
}

impl Place {
    fn new(endpoints: Vec<String>) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("test{}/", MADE.fetch_add(1, Ordering::Relaxed));
        let config = Config {
            endpoints,
            prefix,
            lease_ttl: LEASE_TTL,
            request_timeout: Duration::from_millis(500),
            user: None,
            tls: None,
            epoch_base: 0,
        };
        Self { config, _shared: None }
    }

    fn on(etcd: &Etcd) -> Self {
        Self::new(etcd.endpoints())
    }

    fn long_leases(mut self) -> Self {
        self.config.lease_ttl = LONG_TTL;
        self
    }

    /// The same place, seen by a host with another configuration.
    fn with(&self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = self.config.clone();
        change(&mut config);
        Self { config, _shared: self._shared.clone() }
    }

    /// As seen by a host that tries this member first.
    fn first(&self, member: usize) -> Self {
        self.with(|config| config.endpoints.rotate_left(member))
    }

    /// The whole name of a key in etcd.
    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.config.prefix)
    }
}

impl Harness for Place {
    fn lease_ttl(&self) -> Duration {
        self.config.lease_ttl
    }

    async fn open(&self) -> (Arc<dyn Store>, UnboundedReceiver<Event>) {
        let (sender, events) = unbounded_channel();
        (Arc::new(EtcdStore::open(self.config.clone(), sender).unwrap()), events)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child_process", "--nocapture"]);
        command.env(CHILD_ENDPOINTS, self.config.endpoints.join(",")).env(CHILD_PREFIX, &self.config.prefix);
        command.env(CHILD_TTL, self.config.lease_ttl.as_millis().to_string());
        command
    }

    fn expiry_slack(&self) -> Duration {
        EXPIRY_SLACK
    }
}

/// In a child process this is its body; [`Place::command`] starts it so. In the test run it tests just that.
#[test]
fn child_process() {
    let Ok(endpoints) = std::env::var(CHILD_ENDPOINTS) else { return a_child_process_keeps_a_lease() };
    let mut place = Place::new(endpoints.split(',').map(str::to_owned).collect());
    place.config.prefix = std::env::var(CHILD_PREFIX).unwrap();
    place.config.lease_ttl = Duration::from_millis(std::env::var(CHILD_TTL).unwrap().parse().unwrap());
    let (sender, events) = unbounded_channel();
    let store = EtcdStore::open(place.config, sender).unwrap();
    conformance::process::serve(&store, events);
}

fn a_child_process_keeps_a_lease() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let place = runtime.block_on(ONE.place());
    let (mut process, mut events) = conformance::process::Process::spawn(place.command());
    for _ in 0..2 {
        assert!(matches!(events.blocking_recv(), Some(Event::LeaseRenewed { .. })), "the child does not serve");
    }
    process.kill();
    while let Some(event) = events.blocking_recv() {
        assert!(matches!(event, Event::LeaseRenewed { .. }), "{event:?}");
    }
}

/// An etcd that tests share which leave it in peace. It runs as long as one of them does.
struct Shared {
    members: usize,
    running: Mutex<Weak<Etcd>>,
}

static ONE: Shared = Shared { members: 1, running: Mutex::const_new(Weak::new()) };
static THREE: Shared = Shared { members: 3, running: Mutex::const_new(Weak::new()) };

impl Shared {
    async fn place(&self) -> Place {
        let mut running = self.running.lock().await;
        let etcd = match running.upgrade() {
            Some(etcd) => etcd,
            None => Arc::new(Etcd::start(&EtcdConfig { members: self.members, ..EtcdConfig::default() }).await),
        };
        *running = Arc::downgrade(&etcd);
        Place { _shared: Some(Arc::clone(&etcd)), ..Place::on(&etcd) }
    }

    /// For the conformance suite, which makes its places in tests that have a runtime, but not by waiting.
    fn place_now(&self) -> Place {
        tokio::task::block_in_place(|| Handle::current().block_on(self.place()))
    }
}

mod one_member {
    use super::conformance::{self, conformance};

    fn place() -> super::Place {
        super::ONE.place_now()
    }

    conformance!(place);
}

mod three_members {
    use super::conformance::{self, conformance};

    fn place() -> super::Place {
        super::THREE.place_now()
    }

    conformance!(place);
}

/// The last instant until which a host could believe in the lease that it lost, as told before its `LeaseLost`, which
/// was waited for last.
fn believed_until(host: &conformance::hosts::Host) -> Instant {
    let last = std::cell::Cell::new(Instant::default());
    host.count_before_last_wait(|event| {
        if let Event::LeaseRenewed { until } = event {
            last.set(last.get().max(*until));
        }
        false
    });
    last.get()
}
