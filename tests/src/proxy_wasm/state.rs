//! Everything outside the guest's own memory: contexts, properties, metrics, queues, streams, clock, log.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use wasmtime::{Memory, TypedFunc};

use super::abi::{Headers, LogLevel, MapType};
use super::exchange::{Exchange, Response};

/// What the hostcalls of one worker's VM act upon.
pub(super) struct State {
    pub(super) memory: Option<Memory>,
    pub(super) malloc: Option<TypedFunc<u32, u32>>,

    /// The context of the running callback; 0 outside.
    pub(super) current: u32,
    /// Set by `proxy_set_effective_context`; 0 for none.
    pub(super) effective: u32,
    pub(super) next_context: u32,
    pub(super) roots: BTreeMap<u32, Root>,
    pub(super) exchanges: HashMap<u32, Exchange>,

    /// What hostcalls asked for, carried out after the callback, as Envoy does.
    pub(super) actions: VecDeque<Action>,
    /// What the event loop delivers once the callback and its actions are done.
    pub(super) events: VecDeque<Event>,
    /// A local reply was asked for: whatever the callback returns, the request stops.
    pub(super) stop_iteration: bool,

    pub(super) properties: HashMap<String, Option<Vec<u8>>>,
    pub(super) metrics: Vec<Metric>,
    pub(super) shared_data: HashMap<Vec<u8>, (Vec<u8>, u32)>,
    pub(super) queues: Vec<Queue>,
    pub(super) streams: BTreeMap<u32, Stream>,
    pub(super) next_stream: u32,
    pub(super) clusters: Vec<String>,
    pub(super) grpc_headers: Headers,
    pub(super) grpc_message: Vec<u8>,
    pub(super) grpc_status: (u32, String),
    pub(super) vm_id: String,

    /// Monotonic; wall-clock time is this plus `wall_offset`.
    pub(super) now: Duration,
    pub(super) wall_offset: Duration,
    pub(super) random: u64,
    pub(super) log_level: LogLevel,
    pub(super) log: Vec<LogLine>,
    /// What a real Envoy would punish (assert, stall, misbehave): tests want none.
    pub(super) faults: Vec<String>,
}

pub(super) struct Root {
    pub(super) configuration: Vec<u8>,
    /// The plugin configuration is readable only while `on_configure` runs.
    pub(super) configuring: bool,
    pub(super) tick: Option<Tick>,
}

#[derive(Clone, Copy)]
pub(super) struct Tick {
    pub(super) period: Duration,
    pub(super) next: Duration,
}

pub(super) enum Action {
    ContinueRequest(u32),
    ContinueResponse(u32),
    LocalReply(u32, LocalReply),
    Reset(u32),
}

pub(super) struct LocalReply {
    pub(super) status: u32,
    pub(super) details: String,
    pub(super) headers: Headers,
    pub(super) body: Vec<u8>,
    /// -1: none given.
    pub(super) grpc_status: i32,
}

pub(super) enum Event {
    QueueReady { root: u32, queue: u32 },
}

/// A line that the plugin logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// On the virtual clock.
    pub at: Duration,
    /// How much it matters.
    pub level: LogLevel,
    /// What it says.
    pub text: String,
}

/// A statistic that the plugin defined.
#[derive(Clone, Debug)]
pub struct Metric {
    /// Its full name.
    pub name: String,
    /// Whether it counts, is set, or collects samples.
    pub kind: MetricKind,
    /// Count or level; for a histogram the latest sample.
    pub value: u64,
}

/// The kinds of statistic.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

pub(super) struct Queue {
    pub(super) name: Vec<u8>,
    pub(super) root: u32,
    pub(super) items: VecDeque<Vec<u8>>,
}

/// A gRPC stream that the plugin opened.
pub(super) struct Stream {
    /// Who hears of it: Envoy keeps streams at the root, whoever opened them.
    pub(super) root: u32,
    pub(super) cluster: String,
    pub(super) method: String,
    /// Sent by the plugin, not yet taken by the peer.
    pub(super) outbox: VecDeque<Vec<u8>>,
    pub(super) local: LocalEnd,
    /// The peer has answered the call.
    pub(super) answered: bool,
}

/// What the plugin did to its end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LocalEnd {
    Open,
    /// Half-closed: it sends no more.
    Closed,
    /// Reset: it hears no more either.
    Cancelled,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            memory: None,
            malloc: None,
            current: 0,
            effective: 0,
            next_context: 1,
            roots: BTreeMap::new(),
            exchanges: HashMap::new(),
            actions: VecDeque::new(),
            events: VecDeque::new(),
            stop_iteration: false,
            properties: HashMap::new(),
            metrics: Vec::new(),
            shared_data: HashMap::new(),
            queues: Vec::new(),
            streams: BTreeMap::new(),
            next_stream: 2,
            clusters: Vec::new(),
            grpc_headers: Headers::default(),
            grpc_message: Vec::new(),
            grpc_status: (0, String::new()),
            vm_id: String::new(),
            // No instant is special: neither zero, nor a whole second.
            now: Duration::from_nanos(86_400_123_456_789),
            wall_offset: Duration::from_secs(1_750_000_000),
            random: 0x9e37_79b9_7f4a_7c15,
            log_level: LogLevel::Debug,
            log: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// The context that hostcalls act upon: the effective one while it lives, else that of the callback.
    pub(super) fn context(&self) -> u32 {
        if self.effective != 0 && self.is_live(self.effective) { self.effective } else { self.current }
    }

    pub(super) fn is_live(&self, context: u32) -> bool {
        self.roots.contains_key(&context) || self.exchanges.get(&context).is_some_and(Exchange::is_live)
    }

    pub(super) fn exchange(&self) -> Option<&Exchange> {
        self.exchanges.get(&self.context())
    }

    /// The root of the context that hostcalls act upon.
    pub(super) fn root_id(&self) -> u32 {
        self.exchange().map_or(self.context(), |exchange| exchange.root)
    }

    /// A map to read. Where Envoy's pointer is null there is none.
    pub(super) fn map(&self, map: MapType) -> Option<&Headers> {
        match map {
            MapType::GrpcInitialMetadata | MapType::GrpcTrailingMetadata => {
                return Some(&self.grpc_headers);
            }
            MapType::CallResponseHeaders | MapType::CallResponseTrailers => return None,
            _ => {}
        }
        let exchange = self.exchange()?;
        match map {
            MapType::RequestHeaders if exchange.request_open || exchange.logging => Some(&exchange.request.headers),
            MapType::ResponseHeaders if exchange.response_open || exchange.logging => Some(&exchange.response.headers),
            _ => None,
        }
    }

    /// A map to change.
    pub(super) fn map_mut(&mut self, map: MapType) -> Option<&mut Headers> {
        let context = self.context();
        let exchange = self.exchanges.get_mut(&context)?;
        match map {
            MapType::RequestHeaders if exchange.request_open => Some(&mut exchange.request.headers),
            MapType::ResponseHeaders if exchange.response_open => Some(&mut exchange.response.headers),
            _ => None,
        }
    }

    /// What `get_property` answers: `None` if there is no such thing, `Some(None)` if it cannot be serialised.
    pub(super) fn property(&self, path: &str) -> Option<Option<Vec<u8>>> {
        let own = self.exchange().and_then(|exchange| {
            exchange.request.properties.get(path).cloned().or_else(|| derived_property(exchange, path).map(Some))
        });
        own.or_else(|| self.properties.get(path).cloned())
    }

    pub(super) fn fault(&mut self, what: String) {
        self.faults.push(what);
    }
}

/// Properties that follow from the messages.
fn derived_property(exchange: &Exchange, path: &str) -> Option<Vec<u8>> {
    let header = |name: &str| exchange.request.headers.get(name).map(<[u8]>::to_vec);
    match path {
        "request.path" => header(":path"),
        "request.method" => header(":method"),
        "request.host" => header(":authority"),
        "request.scheme" => header(":scheme"),
        "request.id" => header("x-request-id"),
        "response.code" => status(&exchange.response).map(|code| code.to_le_bytes().to_vec()),
        _ => {
            let name = path.strip_prefix("request.headers.")?;
            header(name)
        }
    }
}

fn status(response: &Response) -> Option<i64> {
    response.headers.text(":status")?.parse().ok()
}
