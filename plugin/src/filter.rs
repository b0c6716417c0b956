//! The one module that calls the proxy: its callbacks come in here; what they ask of a request is in `proxy`.
//!
//! What the proxy's functions do to *another* request (resume, reply) happens after the callback has returned, except
//! for a reset, which may call back into the filter at once. So nothing is borrowed while they are called.

mod proxy;

use core::cell::RefCell;
use core::time::Duration;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, BufferType, ContextType, LogLevel, MetricType};
use turnstile_protocol::v1::{Ending, Who};
use turnstile_protocol::{METHOD, NAME_MAX_BYTES, SERVICE, headers};
use turnstile_rules::{Decision, FilterConfig, LockKeys, RequestView, Rule};

use crate::ask::ask;
use crate::backoff::Jitter;
use crate::clock::{Instant, now, random};
use crate::ending::Facts;
use crate::flow::{Effect, Event, Flow};
use crate::hosts::Hosts;
use crate::reentry::{Kin, Redirected, Reentry};
use crate::reply::Reply;
use crate::session::{Names, Outcome, Output, Rejection, RequestRef, StreamToken, TICK};
use crate::stats::{Stat, Stats};
use proxy::{Deed, Dialect, OURS, View, answer, number, property, strip, text};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|id| Box::new(Root { id, worker: None }));
}}

/// Resumed and answered requests run within the callback that resumed them: more of them overflow the VM's stack.
const SETTLED_PER_CALLBACK: usize = 16;
/// How often to look around when there is no session.
const IDLE_TICK: Duration = Duration::from_secs(1);
/// Guarded requests at once, whatever their state.
const REQUESTS_MAX: usize = 20_000;

/// One configuration of the filter in this worker. During an update, the old one lives on beside the new one.
struct Root {
    id: u32,
    worker: Option<Rc<RefCell<Worker>>>,
}

struct Worker {
    config: Rc<FilterConfig>,
    hosts: Hosts,
    requests: HashMap<RequestRef, GuardedRequest>,
    redirected: Redirected,
    jitter: Jitter,
    stats: Stats,
    metrics: Vec<(Stat, u32)>,
    /// Leads from any callback to a root callback.
    queue: u32,
    hopping: bool,
    tick: Duration,
}

struct GuardedRequest {
    flow: Flow,
    rule: Arc<Rule>,
    /// Joined by commas.
    keys: String,
    /// Whose hold it has.
    kin: Kin,
    /// Its client wants answers in gRPC. The proxy forgets the request's headers when it lets the request through.
    dialect: Dialect,
}

impl Context for Root {
    fn on_grpc_stream_message(&mut self, stream: u32, size: usize) {
        let Ok(Some(message)) = hostcalls::get_buffer(BufferType::GrpcReceiveBuffer, 0, size) else { return };
        self.run(|worker, now| worker.hosts.receive(now, StreamToken(stream), &message));
    }

    fn on_grpc_stream_close(&mut self, stream: u32, status: u32) {
        let stream = StreamToken(stream);
        self.run(|worker, now| {
            // Those of a host that is known to be away end every now and then.
            if let Some(cluster) = worker.hosts.cluster_of(stream).filter(|cluster| !worker.hosts.is_away(*cluster)) {
                let cluster = worker.hosts.name(cluster);
                log::info!("turnstile: a stream to the host behind {cluster} has ended with gRPC status {status}");
            }
            worker.hosts.stream_closed(now, stream);
        });
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        let json = hostcalls::get_buffer(BufferType::PluginConfiguration, 0, usize::MAX).ok().flatten();
        match FilterConfig::parse(&json.unwrap_or_default()) {
            Ok(config) => {
                let (rules, clusters, namespace) =
                    (config.rules.rules().len(), config.clusters.join(", "), &config.namespace);
                log::info!("turnstile: {rules} rules, hosts behind {clusters}, namespace {namespace}");
                self.worker = Worker::new(self.id, config).map(|worker| Rc::new(RefCell::new(worker)));
                self.worker.is_some()
            }
            Err(faults) => {
                log::error!("turnstile: the configuration is refused\n{faults}");
                false
            }
        }
    }

    fn on_tick(&mut self) {
        self.run(|worker, now| {
            worker.hosts.tick(now);
            worker.report_stats();
        });
    }

    fn on_queue_ready(&mut self, queue: u32) {
        while let Ok(Some(_)) = hostcalls::dequeue_shared_queue(queue) {}
        self.run(|worker, _| worker.hopping = false);
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        let worker = self.worker.clone();
        Some(Box::new(Request { id: RequestRef(id), worker, guarded: false }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl Root {
    /// Gives an input, and carries out what follows from it. Root callbacks only: streams can be opened nowhere else.
    fn run(&mut self, input: impl FnOnce(&mut Worker, Instant)) {
        let Some(shared) = &self.worker else { return };
        let Ok(mut worker) = shared.try_borrow_mut() else { return };
        // Read once per callback, and so right before requests are resumed: every call to the proxy costs.
        let now = now();
        input(&mut worker, now);
        worker.tell_changes();
        worker.open_streams(now);
        worker.flush();
        for _ in 0..SETTLED_PER_CALLBACK {
            let Some((request, outcome)) = worker.hosts.poll_outcome() else { break };
            let deed = worker.settle(now, request, outcome);
            // A reset may call back at once.
            drop(worker);
            if let Some(deed) = deed {
                deed.carry_out(request);
            }
            let Ok(again) = shared.try_borrow_mut() else { return };
            worker = again;
        }
        if worker.has_errands() {
            let _ = hostcalls::set_effective_context(self.id);
            worker.flush();
            worker.hop_if_needed();
            worker.adapt_tick();
        }
    }
}

impl Worker {
    fn new(root: u32, config: FilterConfig) -> Option<Self> {
        let seed = random();
        let node = property(&["xds", "node", "id"]).or_else(|| property(&["node", "id"])).unwrap_or_default();
        let mut node = String::from_utf8_lossy(&node).into_owned();
        // The host refuses a longer one.
        node.truncate(node.floor_char_boundary(NAME_MAX_BYTES));
        let names = Names { node, worker: format!("{seed:016x}.{root}") };
        let queue = hostcalls::register_shared_queue(&format!("turnstile.{}", names.worker)).ok()?;
        let metrics = Stat::ALL
            .into_iter()
            .filter_map(|(stat, name)| Some((stat, hostcalls::define_metric(MetricType::Counter, name).ok()?)))
            .collect();
        hostcalls::set_tick_period(IDLE_TICK).ok()?;
        Some(Self {
            hosts: Hosts::new(&config.clusters, &names, seed, now()),
            config: Rc::new(config),
            requests: HashMap::new(),
            redirected: Redirected::default(),
            jitter: Jitter::new(seed.rotate_left(32)),
            stats: Stats::default(),
            metrics,
            queue,
            hopping: false,
            tick: IDLE_TICK,
        })
    }

    /// What follows from the outcome for its request.
    fn settle(&mut self, now: Instant, request: RequestRef, outcome: Outcome) -> Option<Deed> {
        let guarded = self.requests.get_mut(&request)?;
        let effect = match outcome {
            Outcome::Granted(granted) => {
                let is_good = self.hosts.believes(now, request, &granted.tokens);
                if !is_good || guarded.flow.step(Event::Granted) != Effect::Admit {
                    return None;
                }
                self.stats.count(Stat::Granted);
                guarded.kin = granted.kin.clone();
                return Some(Deed::Admit { granted, keys: guarded.keys.clone() });
            }
            Outcome::Rejected(rejection) => {
                guarded.flow.step(Event::Rejected(rejection, guarded.rule.on_host_unavailable()))
            }
            Outcome::Lost(loss) => {
                self.stats.count(Stat::Lost);
                log::debug!("a request lost its lock {}: {loss:?}", guarded.keys);
                guarded.flow.step(Event::Lost(guarded.rule.on_lost()))
            }
        };
        let (keys, dialect) = (guarded.keys.clone(), guarded.dialect);
        match effect {
            Effect::TurnAway(rejection) => Some(Deed::Reply(self.turn_away(request, rejection, &keys), dialect)),
            Effect::Bypass => {
                self.finish(request, Some(Stat::Bypassed));
                Some(Deed::Bypass)
            }
            Effect::AbortWithReply => Some(Deed::Reply(Reply::lost(&keys), dialect)),
            Effect::AbortWithReset => Some(Deed::Reset),
            other => {
                self.apply(request, other);
                None
            }
        }
    }

    /// Carries out an effect that needs nothing but the session.
    fn apply(&mut self, request: RequestRef, effect: Effect) {
        match effect {
            Effect::Release(ending) => {
                self.hosts.release(request, ending);
                let stat = match ending {
                    Ending::Clean => Stat::ReleasedClean,
                    Ending::Unsent => Stat::ReleasedUnsent,
                    Ending::Unclean | Ending::Unspecified => Stat::ReleasedUnclean,
                };
                self.finish(request, Some(stat));
            }
            Effect::Cancel => {
                self.hosts.cancel(request);
                self.finish(request, Some(Stat::Cancelled));
            }
            _ => {}
        }
    }

    fn finish(&mut self, request: RequestRef, stat: Option<Stat>) {
        self.requests.remove(&request);
        if let Some(stat) = stat {
            self.stats.count(stat);
        }
    }

    fn turn_away(&mut self, request: RequestRef, rejection: Rejection, keys: &str) -> Reply {
        let stat = match rejection {
            Rejection::Conflict => Stat::Conflict,
            Rejection::WaitOver { .. } => Stat::Timeout,
            Rejection::Hopeless { .. } => Stat::Hopeless,
            Rejection::Busy { .. } => Stat::Busy,
            Rejection::NoSuchHold | Rejection::Upgrade => Stat::NotJoined,
            Rejection::HostUnavailable => Stat::HostUnavailable,
            Rejection::Invalid => Stat::Errors,
        };
        self.finish(request, Some(stat));
        Reply::rejected(rejection, keys, &mut self.jitter)
    }

    /// `before` is an instant before the call: validities are anchored there.
    fn open_streams(&mut self, before: Instant) {
        while let Some(cluster) = self.hosts.wanted_stream(before) {
            match hostcalls::open_grpc_stream(self.hosts.name(cluster), SERVICE, METHOD, Vec::new()) {
                Ok(stream) => {
                    self.stats.count(Stat::StreamsOpened);
                    self.hosts.stream_opened(before, cluster, StreamToken(stream));
                }
                Err(status) => {
                    if !self.hosts.is_away(cluster) {
                        log::error!("no stream to the cluster {}: {status:?}", self.hosts.name(cluster));
                    }
                    self.hosts.stream_refused(before, cluster);
                    self.tell_changes();
                }
            }
        }
    }

    /// Logs what has become of hosts: once, and not for every request that finds out.
    fn tell_changes(&mut self) {
        while let Some((cluster, change)) = self.hosts.poll_change() {
            let level = if change.is_in_order() { log::Level::Info } else { log::Level::Warn };
            log::log!(level, "turnstile: the host behind {cluster} {change}");
        }
    }

    fn flush(&mut self) {
        while let Some(output) = self.hosts.poll_output() {
            let done = match output {
                Output::Send(StreamToken(stream), message) => {
                    hostcalls::send_grpc_stream_message(stream, Some(&message), false)
                }
                Output::Close(StreamToken(stream)) => hostcalls::cancel_grpc_stream(stream),
            };
            if done.is_err() {
                // The stream is closing, and its close callback is under way.
                self.stats.count(Stat::Errors);
            }
        }
    }

    fn has_errands(&self) -> bool {
        self.hosts.has_output() || self.needs_hop() || self.tick != self.wanted_tick()
    }

    fn needs_hop(&self) -> bool {
        !self.hopping && (self.hosts.has_outcome() || self.hosts.is_waking())
    }

    /// Comes back in a root callback soon if there is something left to do.
    fn hop_if_needed(&mut self) {
        if !self.needs_hop() {
            return;
        }
        self.hopping = hostcalls::enqueue_shared_queue(self.queue, Some(b"hop")).is_ok();
    }

    fn wanted_tick(&self) -> Duration {
        if self.hosts.is_busy() { TICK } else { IDLE_TICK }
    }

    fn adapt_tick(&mut self) {
        let tick = self.wanted_tick();
        if tick != self.tick && hostcalls::set_tick_period(tick).is_ok() {
            self.tick = tick;
        }
    }

    fn report_stats(&mut self) {
        self.stats.add(Stat::Failovers, self.hosts.take_failovers());
        for (stat, count) in self.stats.take() {
            // A dead host loses thousands at once: one line tells it.
            if stat == Stat::Lost {
                log::warn!("turnstile: {count} requests lost their lock");
            }
            if let Some((_, metric)) = self.metrics.iter().find(|(known, _)| *known == stat) {
                let _ = hostcalls::increment_metric(*metric, count.into());
            }
        }
    }
}

/// One HTTP request, guarded or not.
struct Request {
    id: RequestRef,
    worker: Option<Rc<RefCell<Worker>>>,
    guarded: bool,
}

impl Context for Request {
    fn on_done(&mut self) -> bool {
        self.reached(Moment::Finished);
        true
    }
}

impl HttpContext for Request {
    fn on_http_request_headers(&mut self, _count: usize, _end_of_stream: bool) -> Action {
        let Some(Ok(mut worker)) = self.worker.as_ref().map(|worker| worker.try_borrow_mut()) else {
            return answer(
                &Reply::rejected(Rejection::HostUnavailable, "", &mut Jitter::new(0)),
                View::default().dialect(),
            );
        };
        let view = View::default();
        let config = Rc::clone(&worker.config);
        match config.rules.decide(&view) {
            Decision::Unguarded => {
                strip(&OURS);
                Action::Continue
            }
            Decision::Refused { rule: _, fault } => {
                worker.stats.count(Stat::Refused);
                answer(&Reply::refused(&fault), view.dialect())
            }
            Decision::Guarded { rule, keys } => {
                self.guarded = true;
                worker.guard(self.id, rule, keys, &view)
            }
        }
    }

    fn on_http_response_headers(&mut self, _count: usize, end_of_stream: bool) -> Action {
        self.reached(Moment::ResponseHeaders { end_of_stream });
        Action::Continue
    }

    fn on_http_response_body(&mut self, _size: usize, end_of_stream: bool) -> Action {
        if end_of_stream {
            self.reached(Moment::ResponseEnd);
        }
        Action::Continue
    }

    fn on_http_response_trailers(&mut self, _count: usize) -> Action {
        self.reached(Moment::ResponseEnd);
        Action::Continue
    }

    fn on_log(&mut self) {
        self.reached(Moment::Finished);
    }
}

/// Where in its life a request is, as the proxy's callbacks tell.
#[derive(Clone, Copy)]
enum Moment {
    ResponseHeaders { end_of_stream: bool },
    ResponseEnd,
    Finished,
}

impl Request {
    fn reached(&mut self, moment: Moment) {
        if !self.guarded {
            return;
        }
        let Some(shared) = &self.worker else { return };
        let Ok(mut worker) = shared.try_borrow_mut() else { return };
        let Some(guarded) = worker.requests.get_mut(&self.id) else { return };
        let details;
        let mut facts = Facts::default();
        if guarded.flow.needs_facts() && !matches!(moment, Moment::ResponseEnd) {
            details = property(&["response", "code_details"]).unwrap_or_default();
            facts.details = &details;
            facts.attempts = number(&["upstream", "request_attempt_count"]);
            if matches!(moment, Moment::Finished) {
                facts.status = number(&["response", "code"]);
            }
        }
        let effect = guarded.flow.step(match moment {
            Moment::ResponseHeaders { end_of_stream } => Event::ResponseHeaders { facts, end_of_stream },
            Moment::ResponseEnd => Event::ResponseEnd,
            Moment::Finished => Event::Finished { facts },
        });
        if facts.is_redirect() {
            let kin = core::mem::take(&mut guarded.kin);
            worker.redirected.expect(kin);
        }
        worker.apply(self.id, effect);
        worker.flush();
    }
}

impl Worker {
    fn guard(&mut self, id: RequestRef, rule: &Arc<Rule>, keys: LockKeys, view: &View) -> Action {
        self.stats.count(Stat::Guarded);
        let reentry = if rule.reentrant() {
            // The grant overwrites it.
            Reentry::of_header(view.holder().as_deref()).map(|reentry| self.redirected.correct(reentry))
        } else {
            // The others are overwritten by the grant.
            strip(&[headers::HOLDER]);
            Some(Reentry::Closed)
        };
        let dialect = view.dialect();
        let Some(reentry) = reentry else {
            return answer(&self.turn_away(id, Rejection::NoSuchHold, keys.text()), dialect);
        };
        let who = Who { method: text(&view.method(), 32), path: view.bare_path(), ..Default::default() };
        let ask = ask(rule, &keys, reentry, who);
        let (rule, keys) = (Arc::clone(rule), keys.into_text());
        let mut guarded = GuardedRequest { flow: Flow::Idle, rule, keys, kin: Kin::None, dialect };
        guarded.flow.step(Event::Guarded);
        let asked = if self.requests.len() < REQUESTS_MAX {
            self.hosts.acquire(now(), id, ask)
        } else {
            Err(Rejection::Busy { retry_after: None })
        };
        let Err(rejection) = asked else {
            self.requests.insert(id, guarded);
            self.flush();
            self.hop_if_needed();
            return Action::Pause;
        };
        self.hop_if_needed();
        match guarded.flow.step(Event::Rejected(rejection, guarded.rule.on_host_unavailable())) {
            Effect::Bypass => {
                self.stats.count(Stat::Bypassed);
                strip(&OURS);
                Action::Continue
            }
            _ => answer(&self.turn_away(id, rejection, &guarded.keys), dialect),
        }
    }
}
