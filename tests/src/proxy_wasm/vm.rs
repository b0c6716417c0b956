//! One worker's VM: the plugin's callbacks, called in Envoy's order and with its nesting.
//!
//! What a callback asks for (resume, local reply, reset) is carried out right after it returns, and before whatever
//! stands around it goes on. Each of those may call the plugin again, whose wishes are then carried out inside: so
//! resumes nest, and [`Vm::nesting_max`] tells how deep they got.

use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use wasmtime::{Engine, Instance, Linker, Memory, Module, Store, TypedFunc, WasmParams, WasmResults};

use super::exchange::{End, Ending, Exchange, Maker, Phase, Request, Response, is_grpc};
use super::state::{Action, Event, LocalReply, Root, State};
use super::{hostcalls, traffic, wasi};
use crate::proxy_wasm::abi::Headers;

/// Envoy's stack bears about 257 resumes within one another, each of which ends at once.
const NESTING_LIMIT: usize = 200;

/// Why the plugin did not do what it was called for.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The file is no module, or wants imports that Envoy does not have.
    #[error("the plugin could not be loaded: {0}")]
    Load(String),
    /// A callback trapped: the VM is dead.
    #[error("the plugin trapped in {callback}: {message}")]
    Trap {
        /// The export that was called.
        callback: &'static str,
        /// The trap, and where.
        message: String,
    },
    /// Resumes nested deeper than a real Envoy bears.
    #[error("{NESTING_LIMIT} resumes within one another: a real Envoy's stack overflows")]
    Nesting,
    /// The VM was called after a trap.
    #[error("the plugin's VM is dead")]
    Dead,
}

/// A plugin file, compiled.
#[derive(Clone)]
pub struct Plugin {
    engine: Engine,
    module: Module,
}

impl Plugin {
    /// Compiles the file, once in the life of this process.
    pub fn load(path: &Path) -> Result<Self, VmError> {
        static LOADED: OnceLock<Mutex<Vec<(std::path::PathBuf, Plugin)>>> = OnceLock::new();
        let mut loaded = LOADED.get_or_init(Default::default).lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, plugin)) = loaded.iter().find(|(known, _)| known == path) {
            return Ok(plugin.clone());
        }
        let bytes = std::fs::read(path).map_err(|error| VmError::Load(format!("{}: {error}", path.display())))?;
        let engine = Engine::default();
        let module = Module::new(&engine, bytes).map_err(|error| VmError::Load(format!("{error:?}")))?;
        let plugin = Self { engine, module };
        loaded.push((path.to_owned(), plugin.clone()));
        Ok(plugin)
    }
}

/// A VM with one instance of the plugin.
pub struct Vm {
    store: Store<State>,
    instance: Instance,
    memory: Memory,
    dead: bool,
    nesting: usize,
    nesting_max: usize,
}

impl Vm {
    /// Starts the plugin; no root exists yet.
    pub fn new(plugin: &Plugin) -> Result<Self, VmError> {
        let load = |error: wasmtime::Error| VmError::Load(format!("{error:?}"));
        let mut linker = Linker::new(&plugin.engine);
        hostcalls::link(&mut linker).map_err(load)?;
        traffic::link(&mut linker).map_err(load)?;
        wasi::link(&mut linker).map_err(load)?;
        let mut store = Store::new(&plugin.engine, State::new());
        let instance = linker.instantiate(&mut store, &plugin.module).map_err(load)?;
        let memory =
            instance.get_memory(&mut store, "memory").ok_or(VmError::Load("it exports no memory".to_owned()))?;
        let malloc = ["malloc", "proxy_on_memory_allocate"]
            .iter()
            .find_map(|name| instance.get_typed_func::<u32, u32>(&mut store, name).ok())
            .ok_or(VmError::Load("it exports no allocator".to_owned()))?;
        store.data_mut().memory = Some(memory);
        store.data_mut().malloc = Some(malloc);
        let mut vm = Self { store, instance, memory, dead: false, nesting: 0, nesting_max: 0 };
        vm.call::<(), ()>(0, "_initialize", ())?;
        vm.call::<(), ()>(0, "_start", ())?;
        Ok(vm)
    }

    /// Makes a root for this configuration; `false` means that the plugin refused it.
    pub fn configure(&mut self, configuration: &[u8]) -> Result<(u32, bool), VmError> {
        let root = self.allocate_context();
        let size = configuration.len() as u32;
        let entry = Root { configuration: configuration.to_vec(), configuring: true, tick: None };
        self.state_mut().roots.insert(root, entry);
        self.call::<_, ()>(root, "proxy_on_context_create", (root, 0u32))?;
        let started = self.call::<_, u32>(root, "proxy_on_vm_start", (root, 0u32))?.unwrap_or(1);
        let accepted = started != 0 && self.call(root, "proxy_on_configure", (root, size))?.unwrap_or(1u32) != 0;
        if let Some(root) = self.state_mut().roots.get_mut(&root) {
            root.configuring = false;
        }
        Ok((root, accepted))
    }

    /// A request arrives.
    pub fn request(&mut self, root: u32, request: Request) -> Result<u32, VmError> {
        let context = self.allocate_context();
        let (count, end) = (request.headers.len() as u32, u32::from(request.body.is_none()));
        let mut exchange = Exchange::new(root, request);
        exchange.request_open = true;
        self.state_mut().exchanges.insert(context, exchange);
        self.call::<_, ()>(context, "proxy_on_context_create", (context, root))?;
        self.state_mut().stop_iteration = false;
        let action: Option<u32> = self.call(context, "proxy_on_request_headers", (context, count, end))?;
        let stop = std::mem::take(&mut self.state_mut().stop_iteration);
        if self.phase(context) != Some(Phase::Deciding) {
            return Ok(context);
        }
        if stop || action.is_some_and(|action| action != 0) {
            self.set_phase(context, Phase::Paused);
        } else {
            self.forward(context)?;
        }
        Ok(context)
    }

    /// A request that Envoy refuses before any filter sees it: only the ends of its life are told.
    pub fn refused_request(&mut self, root: u32) -> Result<u32, VmError> {
        let context = self.allocate_context();
        let mut exchange = Exchange::new(root, Request::default());
        exchange.response = Response::headers_only(400);
        exchange.made_by = Maker::Envoy;
        exchange.complete = true;
        self.state_mut().exchanges.insert(context, exchange);
        self.call::<_, ()>(context, "proxy_on_context_create", (context, root))?;
        self.finish(context)?;
        Ok(context)
    }

    /// The exchange goes on, or ends, as `ending` says.
    pub fn end(&mut self, context: u32, ending: Ending) -> Result<(), VmError> {
        let Some(exchange) = self.state_mut().exchanges.get_mut(&context).filter(|exchange| exchange.is_live()) else {
            return Ok(());
        };
        let properties = &mut exchange.request.properties;
        properties.insert("response.code_details".to_owned(), Some(ending.details.as_bytes().to_vec()));
        properties.insert("response.flags".to_owned(), Some(ending.flags.to_le_bytes().to_vec()));
        if let Some(attempts) = ending.attempts {
            properties.insert("upstream.request_attempt_count".to_owned(), Some(attempts.to_le_bytes().to_vec()));
        }
        if let Some(response) = ending.response {
            self.respond(context, response, ending.made_by)?;
        }
        if ending.over { self.finish(context) } else { Ok(()) }
    }

    /// More of a response whose headers have passed.
    pub fn respond_more(&mut self, context: u32, body: &[u8], end: End) -> Result<(), VmError> {
        self.response_body(context, vec![body.to_vec()], end)
    }

    /// Moves the virtual clock, without ticking.
    pub fn set_now(&mut self, now: Duration) {
        self.state_mut().now = now;
    }

    /// When the next tick of any root is due.
    pub fn next_tick(&self) -> Option<Duration> {
        self.state().roots.values().filter_map(|root| root.tick).map(|tick| tick.next).min()
    }

    /// Runs the ticks that are due.
    pub fn run_ticks(&mut self) -> Result<(), VmError> {
        let now = self.state().now;
        let due = |root: &Root| root.tick.is_some_and(|tick| tick.next <= now);
        let roots: Vec<u32> = self.state().roots.iter().filter(|(_, root)| due(root)).map(|(id, _)| *id).collect();
        for root in roots {
            if let Some(tick) = self.state_mut().roots.get_mut(&root).and_then(|root| root.tick.as_mut()) {
                tick.next = now + tick.period;
            }
            self.call::<_, ()>(root, "proxy_on_tick", root)?;
        }
        Ok(())
    }

    /// Delivers one event of the event loop; `false` if there was none.
    pub fn run_event(&mut self) -> Result<bool, VmError> {
        match self.state_mut().events.pop_front() {
            None => return Ok(false),
            Some(Event::QueueReady { root, queue }) => {
                self.call::<_, ()>(root, "proxy_on_queue_ready", (root, queue))?;
            }
        }
        Ok(true)
    }

    /// The peer of a gRPC stream answers the call.
    pub fn grpc_headers(&mut self, token: u32, headers: Headers) -> Result<(), VmError> {
        let count = headers.len() as u32;
        self.state_mut().grpc_headers = headers;
        self.call_stream(token, "proxy_on_grpc_receive_initial_metadata", count)
    }

    /// The peer of a gRPC stream sends a message.
    pub fn grpc_message(&mut self, token: u32, message: Vec<u8>) -> Result<(), VmError> {
        let size = message.len() as u32;
        self.state_mut().grpc_message = message;
        self.call_stream(token, "proxy_on_grpc_receive", size)
    }

    /// A gRPC stream ends: trailing metadata, then the close.
    pub fn grpc_close(&mut self, token: u32, status: u32, message: &str) -> Result<(), VmError> {
        self.state_mut().grpc_headers = Headers::default();
        self.call_stream(token, "proxy_on_grpc_receive_trailing_metadata", 0)?;
        self.state_mut().grpc_status = (status, message.to_owned());
        self.call_stream(token, "proxy_on_grpc_close", status)?;
        self.state_mut().streams.remove(&token);
        Ok(())
    }

    /// The size of the guest's memory, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.memory.data_size(&self.store)
    }

    /// How deep resumes got within one another.
    pub fn nesting_max(&self) -> usize {
        self.nesting_max
    }

    pub(super) fn state(&self) -> &State {
        self.store.data()
    }

    pub(super) fn state_mut(&mut self) -> &mut State {
        self.store.data_mut()
    }

    fn allocate_context(&mut self) -> u32 {
        let state = self.state_mut();
        state.next_context += 1;
        state.next_context - 1
    }

    fn phase(&self, context: u32) -> Option<Phase> {
        self.state().exchanges.get(&context).map(|exchange| exchange.phase)
    }

    fn set_phase(&mut self, context: u32, phase: Phase) {
        if let Some(exchange) = self.state_mut().exchanges.get_mut(&context) {
            exchange.phase = phase;
        }
    }

    fn call_stream(&mut self, token: u32, callback: &'static str, number: u32) -> Result<(), VmError> {
        let Some(root) = self.state().streams.get(&token).map(|stream| stream.root) else {
            return Ok(());
        };
        self.call::<_, ()>(root, callback, (root, token, number))?;
        Ok(())
    }

    /// Lets the request go on to the upstream.
    fn forward(&mut self, context: u32) -> Result<(), VmError> {
        let Some(exchange) = self.state_mut().exchanges.get_mut(&context) else {
            return Ok(());
        };
        exchange.phase = Phase::Forwarded;
        exchange.request_open = false;
        exchange.forwarded = Some(exchange.request.headers.clone());
        let size = exchange.request.body.as_ref().map(|body| body.len() as u32);
        let at_once = exchange.request.at_once.take();
        if let Some(size) = size {
            let action: Option<u32> = self.call(context, "proxy_on_request_body", (context, size, 1u32))?;
            if action.is_some_and(|action| action != 0) {
                self.state_mut().fault(format!("request {context} was paused in its body"));
            }
        }
        match at_once {
            Some(ending) => self.end(context, ending),
            None => Ok(()),
        }
    }

    fn respond(&mut self, context: u32, response: Response, made_by: Maker) -> Result<(), VmError> {
        let Some(exchange) = self.state_mut().exchanges.get_mut(&context) else {
            return Ok(());
        };
        let Response { headers, body, end } = response;
        let count = headers.len() as u32;
        exchange.phase = Phase::Responding;
        exchange.made_by = made_by;
        exchange.request_open = false;
        exchange.response = Response { headers, body: Vec::new(), end: End::Never };
        exchange.response_open = true;
        let last = u32::from(end == End::Headers);
        let action: Option<u32> = self.call(context, "proxy_on_response_headers", (context, count, last))?;
        let Some(exchange) = self.state_mut().exchanges.get_mut(&context).filter(|e| e.phase == Phase::Responding)
        else {
            return Ok(());
        };
        exchange.response_open = false;
        exchange.complete = end == End::Headers;
        if action.is_some_and(|action| action != 0) {
            self.state_mut().fault(format!("the response to {context} was paused"));
        }
        self.response_body(context, body, end)
    }

    fn response_body(&mut self, context: u32, body: Vec<Vec<u8>>, end: End) -> Result<(), VmError> {
        let pieces = body.len();
        for (index, piece) in body.into_iter().enumerate() {
            let last = u32::from(end == End::Body && index + 1 == pieces);
            let size = piece.len() as u32;
            let Some(exchange) = self.state_mut().exchanges.get_mut(&context).filter(|e| e.phase == Phase::Responding)
            else {
                return Ok(());
            };
            exchange.response.body.push(piece);
            exchange.complete |= last != 0;
            self.call::<_, u32>(context, "proxy_on_response_body", (context, size, last))?;
        }
        if let End::Trailers(trailers) = &end
            && self.phase(context) == Some(Phase::Responding)
        {
            let count = trailers.len() as u32;
            if let Some(exchange) = self.state_mut().exchanges.get_mut(&context) {
                exchange.complete = true;
            }
            self.call::<_, u32>(context, "proxy_on_response_trailers", (context, count))?;
        }
        Ok(())
    }

    /// The end of an exchange: `on_log`, `on_done`, delete.
    fn finish(&mut self, context: u32) -> Result<(), VmError> {
        let now = self.state().now;
        let live = |exchange: &&mut Exchange| !matches!(exchange.phase, Phase::Ending | Phase::Over);
        let Some(exchange) = self.state_mut().exchanges.get_mut(&context).filter(live) else {
            return Ok(());
        };
        exchange.phase = Phase::Ending;
        exchange.ended_at = Some(now);
        exchange.request_open = false;
        exchange.response_open = false;
        exchange.logging = true;
        self.call::<_, ()>(context, "proxy_on_log", context)?;
        if let Some(exchange) = self.state_mut().exchanges.get_mut(&context) {
            exchange.logging = false;
        }
        self.call::<_, u32>(context, "proxy_on_done", context)?;
        self.call::<_, ()>(context, "proxy_on_delete", context)?;
        self.set_phase(context, Phase::Over);
        if self.state().exchanges.get(&context).is_some_and(|exchange| exchange.abandoned) {
            self.state_mut().exchanges.remove(&context);
        }
        Ok(())
    }

    /// Calls an export, if there is one, and carries out what it asked for.
    fn call<P: WasmParams, R: WasmResults>(
        &mut self,
        context: u32,
        callback: &'static str,
        parameters: P,
    ) -> Result<Option<R>, VmError> {
        if self.dead {
            return Err(VmError::Dead);
        }
        if self.instance.get_func(&mut self.store, callback).is_none() {
            return Ok(None);
        }
        let function: Result<TypedFunc<P, R>, _> = self.instance.get_typed_func(&mut self.store, callback);
        let function = function.map_err(|error| VmError::Load(format!("{callback}: {error}")))?;
        let state = self.store.data_mut();
        let around = (std::mem::replace(&mut state.current, context), std::mem::take(&mut state.effective));
        let result = function.call(&mut self.store, parameters);
        let state = self.store.data_mut();
        (state.current, state.effective) = around;
        let result = result.map_err(|error| {
            self.dead = true;
            VmError::Trap { callback, message: format!("{error:?}") }
        })?;
        self.carry_out()?;
        Ok(Some(result))
    }

    fn carry_out(&mut self) -> Result<(), VmError> {
        while let Some(action) = self.state_mut().actions.pop_front() {
            self.nesting += 1;
            self.nesting_max = self.nesting_max.max(self.nesting);
            let done = if self.nesting > NESTING_LIMIT { Err(VmError::Nesting) } else { self.act(action) };
            self.nesting -= 1;
            done?;
        }
        Ok(())
    }

    fn act(&mut self, action: Action) -> Result<(), VmError> {
        match action {
            Action::ContinueRequest(context) => match self.phase(context) {
                Some(Phase::Paused) => self.forward(context),
                phase => {
                    self.state_mut().fault(format!("request {context} was resumed while {phase:?}"));
                    Ok(())
                }
            },
            Action::ContinueResponse(context) => {
                self.state_mut().fault(format!("the response to {context} was resumed, and was not paused"));
                Ok(())
            }
            Action::LocalReply(context, reply) => self.local_reply(context, reply),
            Action::Reset(context) => self.finish(context),
        }
    }

    fn local_reply(&mut self, context: u32, reply: LocalReply) -> Result<(), VmError> {
        match self.phase(context) {
            Some(Phase::Deciding | Phase::Paused | Phase::Forwarded) => {}
            // Too late for an answer of our own: Envoy cuts the response.
            Some(Phase::Responding) => return self.finish(context),
            _ => return Ok(()),
        }
        let Some(exchange) = self.state_mut().exchanges.get_mut(&context) else {
            return Ok(());
        };
        let response = local_response(&exchange.request.headers, &reply);
        let details = reply.details.into_bytes();
        exchange.request.properties.insert("response.code_details".to_owned(), Some(details));
        self.respond(context, response, Maker::Filter)?;
        self.finish(context)
    }
}

/// What Envoy makes of a local reply.
fn local_response(request: &Headers, reply: &LocalReply) -> Response {
    let mut headers = Headers::default();
    headers.add(":status", reply.status.to_string());
    for (name, value) in reply.headers.iter() {
        headers.add(name, value);
    }
    if is_grpc(request) {
        headers.set(":status", "200");
        headers.set("content-type", "application/grpc");
        if headers.get("grpc-status").is_none() {
            let status = u32::try_from(reply.grpc_status).unwrap_or_else(|_| grpc_status_of(reply.status));
            headers.add("grpc-status", status.to_string());
        }
        if !reply.body.is_empty() {
            headers.set("grpc-message", reply.body.clone());
        }
        headers.remove("content-length");
        return Response { headers, body: Vec::new(), end: End::Headers };
    }
    if reply.body.is_empty() {
        return Response { headers, body: Vec::new(), end: End::Headers };
    }
    headers.set("content-length", reply.body.len().to_string());
    if headers.get("content-type").is_none() {
        headers.add("content-type", "text/plain");
    }
    if request.get(":method") == Some(b"HEAD") {
        return Response { headers, body: Vec::new(), end: End::Headers };
    }
    Response { headers, body: vec![reply.body.clone()], end: End::Body }
}

fn grpc_status_of(http: u32) -> u32 {
    match http {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}
