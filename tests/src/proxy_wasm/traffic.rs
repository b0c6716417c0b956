//! The `env` imports that touch traffic: header maps, bodies, the course of a request, gRPC streams.
//!
//! As in Envoy, nothing re-enters the guest: what a hostcall sets off happens when the callback has returned.

use wasmtime::{Linker, Result};

use super::abi::{BufferType, MapType, Status};
use super::exchange::Phase;
use super::guest::{self, Answer, Guest, wire};
use super::state::{Action, LocalEnd, LocalReply, State, Stream};

pub(super) fn link(linker: &mut Linker<State>) -> Result<()> {
    let env = "env";
    link_maps(linker, env)?;
    link_course(linker, env)?;
    link_grpc(linker, env)
}

fn link_maps(linker: &mut Linker<State>, env: &str) -> Result<()> {
    linker.func_wrap(env, "proxy_get_header_map_pairs", |mut g: Guest<'_>, map: u32, data: u32, size: u32| {
        wire(get_pairs(&mut g, map, data, size))
    })?;
    linker.func_wrap(env, "proxy_set_header_map_pairs", |mut g: Guest<'_>, map: u32, data: u32, size: u32| {
        wire(set_pairs(&mut g, map, data, size))
    })?;
    linker.func_wrap(
        env,
        "proxy_get_header_map_value",
        |mut g: Guest<'_>, map: u32, name: u32, size: u32, value: u32, value_size: u32| {
            wire(get_value(&mut g, map, (name, size), (value, value_size)))
        },
    )?;
    linker.func_wrap(env, "proxy_remove_header_map_value", |mut g: Guest<'_>, map: u32, name: u32, size: u32| {
        wire(change(&mut g, map, Change::Remove, (name, size), (0, 0)))
    })?;
    for (import, what) in
        [("proxy_replace_header_map_value", Change::Replace), ("proxy_add_header_map_value", Change::Add)]
    {
        linker.func_wrap(
            env,
            import,
            move |mut g: Guest<'_>, map: u32, name: u32, size: u32, value: u32, value_size: u32| {
                wire(change(&mut g, map, what, (name, size), (value, value_size)))
            },
        )?;
    }
    linker.func_wrap(
        env,
        "proxy_get_buffer_bytes",
        |mut g: Guest<'_>, buffer: u32, start: u32, length: u32, data: u32, size: u32| {
            wire(get_buffer(&mut g, buffer, (start, length), (data, size)))
        },
    )?;
    linker.func_wrap(env, "proxy_set_buffer_bytes", |_: u32, _: u32, _: u32, _: u32, _: u32| {
        Status::BadArgument as u32
    })?;
    Ok(())
}

fn link_course(linker: &mut Linker<State>, env: &str) -> Result<()> {
    linker.func_wrap(env, "proxy_continue_stream", |mut g: Guest<'_>, stream: u32| {
        wire(continue_stream(&mut g, stream))
    })?;
    linker.func_wrap(env, "proxy_close_stream", |mut g: Guest<'_>, stream: u32| wire(close_stream(&mut g, stream)))?;
    linker.func_wrap(
        env,
        "proxy_send_local_response",
        |mut g: Guest<'_>,
         status: u32,
         details: u32,
         details_size: u32,
         body: u32,
         body_size: u32,
         headers: u32,
         size: u32,
         grpc: i32| {
            let parts = [(details, details_size), (body, body_size), (headers, size)];
            wire(send_local_response(&mut g, status, parts, grpc))
        },
    )?;
    linker.func_wrap(
        env,
        "proxy_http_call",
        |_: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32| Status::BadArgument as u32,
    )?;
    Ok(())
}

fn link_grpc(linker: &mut Linker<State>, env: &str) -> Result<()> {
    linker.func_wrap(
        env,
        "proxy_grpc_stream",
        |mut g: Guest<'_>,
         cluster: u32,
         cluster_size: u32,
         service: u32,
         service_size: u32,
         method: u32,
         method_size: u32,
         _metadata: u32,
         _metadata_size: u32,
         token: u32| {
            let parts = [(cluster, cluster_size), (service, service_size), (method, method_size)];
            wire(grpc_stream(&mut g, parts, token))
        },
    )?;
    linker.func_wrap(env, "proxy_grpc_send", |mut g: Guest<'_>, token: u32, data: u32, size: u32, end: u32| {
        wire(grpc_send(&mut g, token, (data, size), end != 0))
    })?;
    linker.func_wrap(env, "proxy_grpc_cancel", |mut g: Guest<'_>, token: u32| {
        wire(end_stream(&mut g, token, LocalEnd::Cancelled))
    })?;
    linker.func_wrap(env, "proxy_grpc_close", |mut g: Guest<'_>, token: u32| {
        wire(end_stream(&mut g, token, LocalEnd::Closed))
    })?;
    linker.func_wrap(env, "proxy_get_status", |mut g: Guest<'_>, code: u32, data: u32, size: u32| {
        let (number, message) = g.data().grpc_status.clone();
        wire(
            guest::put(&mut g, code, &number.to_le_bytes())
                .and_then(|()| guest::give(&mut g, message.as_bytes(), data, size)),
        )
    })?;
    linker.func_wrap(
        env,
        "proxy_grpc_call",
        |_: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32| {
            Status::ParseFailure as u32
        },
    )?;
    Ok(())
}

fn map_type(number: u32) -> Answer<MapType> {
    MapType::from_wire(number).ok_or(Status::BadArgument)
}

/// Where there is no such map (any more), Envoy gives an empty one.
fn get_pairs(guest: &mut Guest<'_>, map: u32, data: u32, size: u32) -> Answer {
    let bytes = guest.data().map(map_type(map)?).map(super::abi::Headers::to_wire).unwrap_or_default();
    guest::give(guest, &bytes, data, size)
}

fn set_pairs(guest: &mut Guest<'_>, map: u32, data: u32, size: u32) -> Answer {
    let headers = guest::headers(guest, data, size)?;
    *guest.data_mut().map_mut(map_type(map)?).ok_or(Status::BadArgument)? = headers;
    Ok(())
}

/// Where there is no such map (any more), this is a bad argument, upon which the SDK's getters trap.
fn get_value(guest: &mut Guest<'_>, map: u32, name: (u32, u32), value: (u32, u32)) -> Answer {
    let map = map_type(map)?;
    let name = guest::text(guest, name.0, name.1)?;
    let state = guest.data();
    let logging = state.exchange().is_some_and(|exchange| exchange.logging);
    let bytes = match state.map(map) {
        Some(headers) => headers.get(&name).ok_or(Status::NotFound)?.to_vec(),
        None if logging => Vec::new(),
        None => return Err(Status::BadArgument),
    };
    guest::give(guest, &bytes, value.0, value.1)
}

#[derive(Clone, Copy)]
enum Change {
    Add,
    Replace,
    Remove,
}

fn change(guest: &mut Guest<'_>, map: u32, change: Change, name: (u32, u32), value: (u32, u32)) -> Answer {
    let map = map_type(map)?;
    let name = guest::text(guest, name.0, name.1)?;
    let value = guest::bytes(guest, value.0, value.1)?;
    let headers = guest.data_mut().map_mut(map).ok_or(Status::BadArgument)?;
    match change {
        Change::Add => headers.add(&name, value),
        Change::Replace => headers.set(&name, value),
        Change::Remove => headers.remove(&name),
    }
    Ok(())
}

fn get_buffer(guest: &mut Guest<'_>, buffer: u32, range: (u32, u32), result: (u32, u32)) -> Answer {
    let state = guest.data();
    let bytes = match BufferType::from_wire(buffer) {
        BufferType::PluginConfiguration => {
            let root = state.roots.get(&state.context()).filter(|root| root.configuring);
            root.map(|root| root.configuration.as_slice()).ok_or(Status::NotFound)?
        }
        BufferType::VmConfiguration => &[],
        BufferType::GrpcMessage => &state.grpc_message,
        BufferType::RequestBody => {
            let body = state.exchange().and_then(|exchange| exchange.request.body.as_deref());
            body.ok_or(Status::NotFound)?
        }
        BufferType::ResponseBody | BufferType::Other => return Err(Status::NotFound),
    };
    let start = range.0 as usize;
    let end = start.saturating_add(range.1 as usize).min(bytes.len());
    let part = bytes.get(start..end).unwrap_or_default().to_vec();
    guest::give(guest, &part, result.0, result.1)
}

fn continue_stream(guest: &mut Guest<'_>, stream: u32) -> Answer {
    let state = guest.data_mut();
    let context = state.context();
    let Some(exchange) = state.exchanges.get_mut(&context) else {
        state.fault(format!("a request was resumed from context {context}, which is no request"));
        return Ok(());
    };
    let action = match stream {
        0 => {
            // From here on Envoy has no request headers for us.
            exchange.request_open = false;
            Action::ContinueRequest(context)
        }
        1 => Action::ContinueResponse(context),
        _ => return Err(Status::BadArgument),
    };
    state.actions.push_back(action);
    Ok(())
}

fn close_stream(guest: &mut Guest<'_>, stream: u32) -> Answer {
    if stream > 1 {
        return Err(Status::BadArgument);
    }
    let state = guest.data_mut();
    let context = state.context();
    if state.exchanges.contains_key(&context) {
        state.actions.push_back(Action::Reset(context));
    } else {
        state.fault(format!("a request was reset from context {context}, which is no request"));
    }
    Ok(())
}

fn send_local_response(guest: &mut Guest<'_>, status: u32, parts: [(u32, u32); 3], grpc_status: i32) -> Answer {
    let [details, body, headers] = parts;
    let reply = LocalReply {
        status,
        details: guest::text(guest, details.0, details.1)?,
        body: guest::bytes(guest, body.0, body.1)?,
        headers: guest::headers(guest, headers.0, headers.1)?,
        grpc_status,
    };
    let state = guest.data_mut();
    let context = state.context();
    if !state.exchanges.contains_key(&context) {
        state.fault(format!("a local reply came from context {context}, which is no request"));
        return Ok(());
    }
    let caller = state.current;
    let within = state.exchanges.get(&caller).is_some_and(|e| matches!(e.phase, Phase::Deciding | Phase::Responding));
    if within && caller != context {
        // envoy-facts: this stalls the caller.
        state.fault(format!("a local reply for request {context} came from a callback of request {caller}"));
    }
    state.stop_iteration = true;
    state.actions.push_back(Action::LocalReply(context, reply));
    Ok(())
}

fn grpc_stream(guest: &mut Guest<'_>, parts: [(u32, u32); 3], token_at: u32) -> Answer {
    let [cluster, service, method] = parts;
    let cluster = guest::text(guest, cluster.0, cluster.1)?;
    let service = guest::text(guest, service.0, service.1)?;
    let method = guest::text(guest, method.0, method.1)?;
    let state = guest.data_mut();
    if !state.clusters.contains(&cluster) {
        return Err(Status::ParseFailure);
    }
    let token = state.next_stream;
    state.next_stream += 2;
    let stream = Stream {
        root: state.root_id(),
        cluster,
        method: format!("/{service}/{method}"),
        outbox: Default::default(),
        local: LocalEnd::Open,
        answered: false,
    };
    state.streams.insert(token, stream);
    guest::put(guest, token_at, &token.to_le_bytes())
}

fn grpc_send(guest: &mut Guest<'_>, token: u32, data: (u32, u32), end: bool) -> Answer {
    let message = guest::bytes(guest, data.0, data.1)?;
    let stream = guest.data_mut().streams.get_mut(&token).ok_or(Status::NotFound)?;
    if stream.local == LocalEnd::Open {
        stream.outbox.push_back(message);
    }
    if end {
        stream.local = LocalEnd::Closed;
    }
    Ok(())
}

fn end_stream(guest: &mut Guest<'_>, token: u32, how: LocalEnd) -> Answer {
    let stream = guest.data_mut().streams.get_mut(&token).ok_or(Status::NotFound)?;
    stream.local = how;
    Ok(())
}
