//! The one file that calls the proxy: its callbacks come in here, and its functions are called from here.
//!
//! What the proxy's functions do to *another* request (resume, reply) happens after the callback has returned, except
//! for a reset, which may call back into the filter at once. So nothing is borrowed while they are called.

use core::cell::{OnceCell, RefCell};
use core::time::Duration;
use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, BufferType, ContextType, GrpcStatusCode, LogLevel, MapType, MetricType};
use turnstile_protocol::v1::{Ending, Who};
use turnstile_protocol::{METHOD, SERVICE, headers};
use turnstile_rules::{Decision, FilterConfig, HeaderValues, RequestView, Rule};

use crate::backoff::{Backoff, Jitter};
use crate::clock::{now, random};
use crate::ending::Facts;
use crate::flow::{Effect, Event, Flow};
use crate::reply::{GrpcStatus, MEDIA_TYPE, Reply};
use crate::session::{Ask, Names, Outcome, Output, Rejection, RequestRef, StreamToken, TICK};
use crate::sessions::Sessions;
use crate::stats::{Stat, Stats};

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
/// As much of a path goes into [`Who`].
const WHO_PATH_BYTES: usize = 256;

/// One configuration of the filter in this worker. During an update, the old one lives on beside the new one.
struct Root {
    id: u32,
    worker: Option<Rc<RefCell<Worker>>>,
}

struct Worker {
    config: Rc<FilterConfig>,
    sessions: Sessions,
    requests: HashMap<RequestRef, GuardedRequest>,
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
    key: String,
}

impl Context for Root {
    fn on_grpc_stream_message(&mut self, stream: u32, size: usize) {
        let Ok(Some(message)) = hostcalls::get_buffer(BufferType::GrpcReceiveBuffer, 0, size) else { return };
        self.run(|worker| worker.sessions.receive(now(), StreamToken(stream), &message));
    }

    fn on_grpc_stream_close(&mut self, stream: u32, status: u32) {
        log::info!("the stream to the lock host has ended with gRPC status {status}");
        self.run(|worker| worker.sessions.stream_closed(now(), StreamToken(stream)));
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        let json = hostcalls::get_buffer(BufferType::PluginConfiguration, 0, usize::MAX).ok().flatten();
        match FilterConfig::parse(&json.unwrap_or_default()) {
            Ok(config) => {
                log::info!("turnstile: cluster {}, namespace {}", config.cluster, config.namespace);
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
        self.run(|worker| {
            worker.sessions.tick(now());
            worker.report_stats();
        });
    }

    fn on_queue_ready(&mut self, queue: u32) {
        while let Ok(Some(_)) = hostcalls::dequeue_shared_queue(queue) {}
        self.run(|worker| worker.hopping = false);
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
    fn run(&mut self, input: impl FnOnce(&mut Worker)) {
        let Some(shared) = &self.worker else { return };
        let Ok(mut worker) = shared.try_borrow_mut() else { return };
        input(&mut worker);
        worker.open_streams();
        worker.flush();
        for _ in 0..SETTLED_PER_CALLBACK {
            let Some((request, outcome)) = worker.sessions.poll_outcome() else { break };
            let deed = worker.settle(request, outcome);
            // A reset calls back at once.
            drop(worker);
            if let Some(deed) = deed {
                deed.carry_out(request);
            }
            let Ok(again) = shared.try_borrow_mut() else { return };
            worker = again;
        }
        let _ = hostcalls::set_effective_context(self.id);
        worker.flush();
        worker.hop_if_needed();
        worker.adapt_tick();
    }
}

/// What to do to a request that is not the one whose callback this is.
enum Deed {
    Admit { token: u64, key: String },
    Bypass,
    Reply(Reply),
    Reset,
}

impl Deed {
    fn carry_out(self, request: RequestRef) {
        if hostcalls::set_effective_context(request.0).is_err() {
            return;
        }
        let done = match self {
            Self::Admit { token, key } => {
                let token = token.to_string();
                hostcalls::add_map_value_bytes(MapType::HttpRequestHeaders, headers::TOKEN, token.as_bytes())
                    .and_then(|()| {
                        hostcalls::add_map_value_bytes(MapType::HttpRequestHeaders, headers::KEY, key.as_bytes())
                    })
                    .and_then(|()| hostcalls::resume_http_request())
            }
            Self::Bypass => hostcalls::resume_http_request(),
            Self::Reply(reply) => send(&reply),
            Self::Reset => hostcalls::reset_http_request(),
        };
        if let Err(status) = done {
            log::error!("the proxy refused to go on with a request: {status:?}");
        }
    }
}

impl Worker {
    fn new(root: u32, config: FilterConfig) -> Option<Self> {
        let seed = random();
        let node = property(&["xds", "node", "id"]).or_else(|| property(&["node", "id"])).unwrap_or_default();
        let names = Names { node: String::from_utf8_lossy(&node).into_owned(), worker: format!("{seed:016x}.{root}") };
        let queue = hostcalls::register_shared_queue(&format!("turnstile.{}", names.worker)).ok()?;
        let metrics = Stat::ALL
            .into_iter()
            .filter_map(|(stat, name)| Some((stat, hostcalls::define_metric(MetricType::Counter, name).ok()?)))
            .collect();
        hostcalls::set_tick_period(IDLE_TICK).ok()?;
        Some(Self {
            config: Rc::new(config),
            sessions: Sessions::new(names, Backoff::new(Jitter::new(seed)), now()),
            requests: HashMap::new(),
            jitter: Jitter::new(seed.rotate_left(32)),
            stats: Stats::default(),
            metrics,
            queue,
            hopping: false,
            tick: IDLE_TICK,
        })
    }

    /// What follows from the outcome for its request.
    fn settle(&mut self, request: RequestRef, outcome: Outcome) -> Option<Deed> {
        let guarded = self.requests.get_mut(&request)?;
        let effect = match outcome {
            Outcome::Granted { token } => {
                if !self.sessions.believes(now(), request) {
                    return None;
                }
                guarded.flow.step(Event::Granted);
                self.stats.count(Stat::Granted);
                return Some(Deed::Admit { token, key: guarded.key.clone() });
            }
            Outcome::Rejected(rejection) => {
                guarded.flow.step(Event::Rejected(rejection, guarded.rule.on_host_unavailable()))
            }
            Outcome::Lost(loss) => {
                self.stats.count(Stat::Lost);
                log::warn!("a request lost its lock {}: {loss:?}", guarded.key);
                guarded.flow.step(Event::Lost(guarded.rule.on_lost()))
            }
        };
        let key = guarded.key.clone();
        match effect {
            Effect::TurnAway(rejection) => Some(Deed::Reply(self.turn_away(request, rejection, &key))),
            Effect::Bypass => {
                self.finish(request, Some(Stat::Bypassed));
                Some(Deed::Bypass)
            }
            Effect::AbortWithReply => Some(Deed::Reply(Reply::lost(&key))),
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
                self.sessions.release(request, ending);
                let stat = match ending {
                    Ending::Clean => Stat::ReleasedClean,
                    Ending::Unsent => Stat::ReleasedUnsent,
                    Ending::Unclean | Ending::Unspecified => Stat::ReleasedUnclean,
                };
                self.finish(request, Some(stat));
            }
            Effect::Cancel => {
                self.sessions.cancel(request);
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

    fn turn_away(&mut self, request: RequestRef, rejection: Rejection, key: &str) -> Reply {
        let stat = match rejection {
            Rejection::Conflict => Stat::Conflict,
            Rejection::WaitOver { .. } => Stat::Timeout,
            Rejection::Busy { .. } => Stat::Busy,
            Rejection::HostUnavailable => Stat::HostUnavailable,
            Rejection::Invalid => Stat::Errors,
        };
        self.finish(request, Some(stat));
        Reply::rejected(rejection, key, &mut self.jitter)
    }

    fn open_streams(&mut self) {
        while self.sessions.wants_stream(now()) {
            // The instant before the call: validities are anchored there.
            let before = now();
            match hostcalls::open_grpc_stream(&self.config.cluster, SERVICE, METHOD, Vec::new()) {
                Ok(stream) => {
                    self.stats.count(Stat::StreamsOpened);
                    self.sessions.stream_opened(before, StreamToken(stream));
                }
                Err(status) => {
                    log::error!("no stream to the cluster {}: {status:?}", self.config.cluster);
                    self.sessions.stream_refused(before);
                }
            }
        }
    }

    fn flush(&mut self) {
        while let Some(output) = self.sessions.poll_output() {
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

    /// Comes back in a root callback soon if there is something left to do.
    fn hop_if_needed(&mut self) {
        if self.hopping || !(self.sessions.has_outcome() || self.sessions.wants_stream(now())) {
            return;
        }
        self.hopping = hostcalls::enqueue_shared_queue(self.queue, Some(b"hop")).is_ok();
    }

    fn adapt_tick(&mut self) {
        let tick = if self.sessions.is_busy() { TICK } else { IDLE_TICK };
        if tick != self.tick && hostcalls::set_tick_period(tick).is_ok() {
            self.tick = tick;
        }
    }

    fn report_stats(&mut self) {
        for (stat, count) in self.stats.take() {
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
        for name in [headers::TOKEN, headers::KEY, headers::HOLDER] {
            if let Ok(Some(_)) = hostcalls::get_map_value_bytes(MapType::HttpRequestHeaders, name) {
                let _ = hostcalls::remove_map_value(MapType::HttpRequestHeaders, name);
            }
        }
        let Some(shared) = self.worker.clone() else { return Action::Pause };
        let Ok(mut worker) = shared.try_borrow_mut() else { return Action::Pause };
        let view = View::default();
        let config = Rc::clone(&worker.config);
        match config.rules.decide(&view) {
            Decision::Unguarded => Action::Continue,
            Decision::Refused { rule: _, fault } => {
                worker.stats.count(Stat::Refused);
                answer(&Reply::refused(&fault))
            }
            Decision::Guarded { rule, key } => {
                self.guarded = true;
                worker.guard(self.id, rule, key, &view)
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
        worker.apply(self.id, effect);
        worker.flush();
    }
}

impl Worker {
    fn guard(&mut self, id: RequestRef, rule: &Arc<Rule>, key: String, view: &View) -> Action {
        self.stats.count(Stat::Guarded);
        let ask = Ask {
            key: key.clone(),
            wait: rule.wait(),
            hold: rule.hold(),
            lock_delay: rule.lock_delay(),
            who: Who { method: text(&view.method(), 32), path: view.bare_path(), ..Default::default() },
        };
        let mut guarded = GuardedRequest { flow: Flow::Idle, rule: Arc::clone(rule), key };
        guarded.flow.step(Event::Guarded);
        let asked = if self.requests.len() < REQUESTS_MAX {
            self.sessions.acquire(now(), id, ask)
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
        match guarded.flow.step(Event::Rejected(rejection, rule.on_host_unavailable())) {
            Effect::Bypass => {
                self.stats.count(Stat::Bypassed);
                Action::Continue
            }
            _ => {
                let key = guarded.key;
                answer(&self.turn_away(id, rejection, &key))
            }
        }
    }
}

/// The request of this callback, as the rules see it. What is read once is kept.
#[derive(Default)]
struct View {
    method: OnceCell<Vec<u8>>,
    path: OnceCell<Vec<u8>>,
}

impl RequestView for View {
    fn method(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.method.get_or_init(|| header(":method").unwrap_or_default()))
    }

    fn authority(&self) -> Cow<'_, [u8]> {
        Cow::Owned(header(":authority").unwrap_or_default())
    }

    fn path(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.path.get_or_init(|| header(":path").unwrap_or_default()))
    }

    fn header(&self, name: &str) -> HeaderValues<'_> {
        header(name).map_or(HeaderValues::Absent, |value| HeaderValues::One(Cow::Owned(value)))
    }
}

impl View {
    /// The path without its query, which is nobody's business.
    fn bare_path(&self) -> String {
        let path = self.path();
        text(path.split(|&byte| byte == b'?').next().unwrap_or_default(), WHO_PATH_BYTES)
    }
}

fn text(bytes: &[u8], max: usize) -> String {
    String::from_utf8_lossy(bytes.get(..max).unwrap_or(bytes)).into_owned()
}

fn header(name: &str) -> Option<Vec<u8>> {
    hostcalls::get_map_value_bytes(MapType::HttpRequestHeaders, name).ok().flatten()
}

fn property(path: &[&str]) -> Option<Vec<u8>> {
    hostcalls::get_property(path.to_vec()).ok().flatten()
}

fn number(path: &[&str]) -> Option<u64> {
    property(path).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes)
}

/// Answers the request of this callback.
fn answer(reply: &Reply) -> Action {
    if let Err(status) = send(reply) {
        log::error!("the proxy refused a reply: {status:?}");
    }
    Action::Pause
}

/// Answers the request of the effective context.
fn send(reply: &Reply) -> Result<(), proxy_wasm::types::Status> {
    let retry_after = reply.retry_after_s.map(|seconds| seconds.to_string());
    let content_type = property(&["request", "headers", "content-type"]).unwrap_or_default();
    if content_type.starts_with(b"application/grpc") {
        let metadata = retry_after.iter().map(|value| ("retry-after", value.as_bytes())).collect();
        let status = match reply.grpc_status {
            GrpcStatus::InvalidArgument => GrpcStatusCode::InvalidArgument,
            GrpcStatus::Aborted => GrpcStatusCode::Aborted,
            GrpcStatus::Internal => GrpcStatusCode::Internal,
            GrpcStatus::Unavailable => GrpcStatusCode::Unavailable,
        };
        return hostcalls::send_grpc_response(status, Some(reply.detail()), metadata);
    }
    let mut headers = vec![("content-type", MEDIA_TYPE)];
    headers.extend(retry_after.as_deref().map(|value| ("retry-after", value)));
    hostcalls::send_http_response(reply.status, headers, Some(&reply.body()))
}
