//! The harness that tests drive: one worker, its requests, its virtual clock.

use std::cell::{Ref, RefCell, RefMut};
use std::fmt::Write as _;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::abi::Headers;
use super::endings;
use super::exchange::{End, Ending, Outcome, Reply, Request, Response};
use super::model_host::ModelHost;
use super::peer::Peer;
use super::state::{LogLine, Metric};
use super::vm::{Plugin, Vm, VmError};

/// A plugin that answers each event with another one for this long never comes to rest.
const STEPS_MAX: usize = 20_000;

/// What a worker is started with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The filter's configuration.
    pub configuration: Vec<u8>,
    /// Envoy's clusters for hosts; the first one is [`Worker::host`].
    pub clusters: Vec<String>,
    /// Whether the hosts run when the worker starts.
    pub hosts_up: bool,
}

impl Setup {
    /// With one host, `turnstile_host`, that runs.
    pub fn new(configuration: impl Into<Vec<u8>>) -> Self {
        Self { configuration: configuration.into(), clusters: vec!["turnstile_host".to_owned()], hosts_up: true }
    }

    /// The hosts are down when the worker starts.
    pub fn hosts_down(mut self) -> Self {
        self.hosts_up = false;
        self
    }
}

pub(super) struct World {
    pub(super) vm: Vm,
    pub(super) peers: Vec<Peer>,
}

impl World {
    /// Runs the event loop until nothing is left to do at this instant.
    pub(super) fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            let mut busy = self.vm.run_event();
            for peer in &mut self.peers {
                if let Ok(false) = busy {
                    busy = peer.step(&mut self.vm);
                }
            }
            match busy {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => self.fail(&error),
            }
        }
        panic!("the plugin never comes to rest\n{}", self.log_text());
    }

    fn must<T>(&mut self, result: Result<T, VmError>) -> T {
        match result {
            Ok(value) => value,
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&self, error: &VmError) -> ! {
        panic!("{error}\nthe plugin's log:\n{}", self.log_text())
    }

    fn log_text(&self) -> String {
        let mut text = String::new();
        for line in self.vm.state().log.iter().rev().take(40).rev() {
            let _ = writeln!(text, "{:?} {:?} {}", line.at, line.level, line.text);
        }
        text
    }
}

/// One Envoy worker with the plugin.
pub struct Worker {
    world: Rc<RefCell<World>>,
    root: u32,
}

impl Worker {
    /// Starts the plugin of this file with a configuration that it must accept.
    ///
    /// # Panics
    /// If it refuses the configuration or traps.
    pub fn start(plugin: &Path, setup: &Setup) -> Self {
        match Self::try_start(plugin, setup) {
            Ok(worker) => worker,
            Err(log) => panic!("the plugin refused its configuration: {log:#?}"),
        }
    }

    /// Starts the plugin; if it refuses its configuration, its log tells why.
    ///
    /// # Panics
    /// If it traps.
    pub fn try_start(plugin: &Path, setup: &Setup) -> Result<Self, Vec<LogLine>> {
        let vm = Plugin::load(plugin).and_then(|plugin| Vm::new(&plugin)).unwrap_or_else(|error| panic!("{error}"));
        let peers = setup.clusters.iter().map(|cluster| Peer::new(cluster, setup.hosts_up)).collect();
        let mut world = World { vm, peers };
        let state = world.vm.state_mut();
        state.clusters.clone_from(&setup.clusters);
        for (path, value) in [("node.id", "node-1"), ("plugin_root_id", "turnstile"), ("plugin_name", "turnstile")] {
            state.properties.insert(path.to_owned(), Some(value.as_bytes().to_vec()));
        }
        let configured = world.vm.configure(&setup.configuration);
        let (root, accepted) = world.must(configured);
        if !accepted {
            return Err(world.vm.state().log.clone());
        }
        world.settle();
        Ok(Self { world: Rc::new(RefCell::new(world)), root })
    }

    /// The host behind the first cluster.
    pub fn host(&self) -> ModelHost {
        self.host_of(0)
    }

    /// The host behind cluster number `index` of the setup.
    pub fn host_of(&self, index: usize) -> ModelHost {
        ModelHost::new(Rc::clone(&self.world), index)
    }

    /// A request arrives; everything that it sets off at this instant has happened when this returns.
    pub fn request(&self, request: Request) -> InFlight {
        let mut world = self.borrow();
        let started = world.vm.request(self.root, request);
        let context = world.must(started);
        world.settle();
        InFlight { world: Rc::clone(&self.world), context }
    }

    /// A request that Envoy refuses before the filter sees it.
    pub fn refused_request(&self) -> InFlight {
        let mut world = self.borrow();
        let started = world.vm.refused_request(self.root);
        let context = world.must(started);
        world.settle();
        InFlight { world: Rc::clone(&self.world), context }
    }

    /// Envoy takes a new configuration: another root in the same VM serves new requests; the old one lives on.
    pub fn reconfigure(&mut self, configuration: &[u8]) {
        let mut world = self.world.borrow_mut();
        let configured = world.vm.configure(configuration);
        let (root, accepted) = world.must(configured);
        assert!(accepted, "the plugin refused its new configuration");
        world.settle();
        drop(world);
        self.root = root;
    }

    /// Time passes; ticks run and hosts answer as it does.
    pub fn advance(&self, duration: Duration) {
        let mut world = self.borrow();
        let target = world.vm.state().now + duration;
        loop {
            let tick = world.vm.next_tick();
            let due = world.peers.iter().filter_map(Peer::next_due).chain(tick).min();
            let Some(at) = due.filter(|at| *at <= target) else {
                break;
            };
            let at = at.max(world.vm.state().now);
            world.vm.set_now(at);
            let ticked = world.vm.run_ticks();
            world.must(ticked);
            world.settle();
        }
        world.vm.set_now(target);
        world.settle();
    }

    /// The worker is frozen: time passes, and nothing runs.
    pub fn freeze(&self, duration: Duration) {
        let mut world = self.borrow();
        let now = world.vm.state().now;
        world.vm.set_now(now + duration);
    }

    /// The virtual monotonic clock.
    pub fn now(&self) -> Duration {
        self.look().vm.state().now
    }

    /// What the plugin logged.
    pub fn log(&self) -> Vec<LogLine> {
        self.look().vm.state().log.clone()
    }

    /// Statistics that the plugin defined.
    pub fn metrics(&self) -> Vec<Metric> {
        self.look().vm.state().metrics.clone()
    }

    /// The size of the plugin's memory, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.look().vm.memory_bytes()
    }

    /// How deep resumes got within one another.
    pub fn nesting_max(&self) -> usize {
        self.look().vm.nesting_max()
    }

    /// Asserts that nothing happened that a real Envoy or host would punish.
    ///
    /// # Panics
    /// If something did.
    pub fn check(&self) {
        let world = self.look();
        let mut faults = world.vm.state().faults.clone();
        faults.extend(world.peers.iter().flat_map(Peer::faults));
        assert!(faults.is_empty(), "{faults:#?}\nthe plugin's log:\n{}", world.log_text());
    }

    fn borrow(&self) -> RefMut<'_, World> {
        self.world.borrow_mut()
    }

    fn look(&self) -> Ref<'_, World> {
        self.world.borrow()
    }
}

/// A request between its client and its upstream.
pub struct InFlight {
    world: Rc<RefCell<World>>,
    context: u32,
}

impl InFlight {
    /// Where it stands.
    pub fn outcome(&self) -> Outcome {
        self.with(|exchange| exchange.outcome())
    }

    /// Whether the filter holds it back.
    pub fn is_paused(&self) -> bool {
        self.outcome() == Outcome::Paused
    }

    /// What the upstream got of it, if it ever got anything.
    pub fn upstream(&self) -> Option<Headers> {
        self.with(|exchange| exchange.forwarded.clone())
    }

    /// The answer that the filter gave in place of the upstream.
    ///
    /// # Panics
    /// If it gave none.
    pub fn local_reply(&self) -> Reply {
        match self.outcome() {
            Outcome::LocalReply(reply) => reply,
            other => panic!("no local reply, but {other:?}"),
        }
    }

    /// Whether its context is gone.
    pub fn is_over(&self) -> bool {
        self.with(|exchange| !exchange.is_live())
    }

    /// When its client or upstream saw its end.
    pub fn ended_at(&self) -> Option<Duration> {
        self.with(|exchange| exchange.ended_at)
    }

    /// It goes on or ends in this way.
    pub fn end(&self, ending: Ending) {
        let mut world = self.world.borrow_mut();
        let ended = world.vm.end(self.context, ending);
        world.must(ended);
        world.settle();
    }

    /// The upstream answers completely.
    pub fn respond(&self, response: Response) {
        self.end(endings::answered(response));
    }

    /// More of a response that has begun.
    pub fn respond_more(&self, body: &[u8], end: End) {
        let mut world = self.world.borrow_mut();
        let sent = world.vm.respond_more(self.context, body, end);
        world.must(sent);
        world.settle();
    }

    /// The client goes away, or half-closes its HTTP/1 connection.
    pub fn client_gone(&self) {
        let attempts = u64::from(self.upstream().is_some());
        self.end(endings::client_gone(attempts));
    }

    /// The upstream breaks off: before its response, or within it.
    pub fn reset_by_upstream(&self) {
        let begun = self.with(|exchange| exchange.phase == super::exchange::Phase::Responding);
        self.end(if begun { endings::reset_mid_response() } else { endings::reset_before_headers() });
    }

    /// The route's timeout passes.
    pub fn timeout_504(&self) {
        self.end(endings::route_timeout());
    }

    fn with<T>(&self, look: impl FnOnce(&super::exchange::Exchange) -> T) -> T {
        let world = self.world.borrow();
        look(world.vm.state().exchanges.get(&self.context).expect("kept as long as this handle"))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // A request that is still on its way goes on without its handle.
        if let Ok(mut world) = self.world.try_borrow_mut() {
            let exchanges = &mut world.vm.state_mut().exchanges;
            match exchanges.get_mut(&self.context) {
                Some(exchange) if exchange.is_live() => exchange.abandoned = true,
                _ => drop(exchanges.remove(&self.context)),
            }
        }
    }
}
