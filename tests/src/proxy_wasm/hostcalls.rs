//! The `env` imports that any filter may call: log, time, properties, metrics, shared data and queues.

use std::collections::VecDeque;
use std::time::Duration;

use wasmtime::{Linker, Result};

use super::abi::{LogLevel, Status};
use super::guest::{self, Answer, Guest, wire};
use super::state::{Event, LogLine, Metric, MetricKind, Queue, State, Tick};

pub(super) fn link(linker: &mut Linker<State>) -> Result<()> {
    let env = "env";
    linker.func_wrap(env, "proxy_log", |mut g: Guest<'_>, level: u32, text: u32, size: u32| {
        wire(log(&mut g, level, text, size))
    })?;
    linker.func_wrap(env, "proxy_get_log_level", |mut g: Guest<'_>, result: u32| {
        let level = g.data().log_level as u32;
        wire(guest::put(&mut g, result, &level.to_le_bytes()))
    })?;
    linker.func_wrap(env, "proxy_get_current_time_nanoseconds", |mut g: Guest<'_>, result: u32| {
        let time = g.data().now + g.data().wall_offset;
        wire(guest::put(&mut g, result, &(time.as_nanos() as u64).to_le_bytes()))
    })?;
    linker.func_wrap(env, "proxy_set_tick_period_milliseconds", |mut g: Guest<'_>, period: u32| {
        wire(set_tick_period(&mut g, period))
    })?;
    linker.func_wrap(env, "proxy_set_effective_context", |mut g: Guest<'_>, context: u32| {
        wire(set_effective_context(&mut g, context))
    })?;
    linker.func_wrap(env, "proxy_done", || Status::Ok as u32)?;
    linker.func_wrap(env, "proxy_call_foreign_function", |_: u32, _: u32, _: u32, _: u32, _: u32, _: u32| {
        Status::NotFound as u32
    })?;
    link_properties(linker, env)?;
    link_metrics(linker, env)?;
    link_shared(linker, env)
}

fn link_properties(linker: &mut Linker<State>, env: &str) -> Result<()> {
    linker.func_wrap(
        env,
        "proxy_get_property",
        |mut g: Guest<'_>, path: u32, size: u32, value: u32, value_size: u32| {
            wire(get_property(&mut g, path, size, value, value_size))
        },
    )?;
    linker.func_wrap(
        env,
        "proxy_set_property",
        |mut g: Guest<'_>, path: u32, size: u32, value: u32, value_size: u32| {
            wire(set_property(&mut g, path, size, value, value_size))
        },
    )?;
    Ok(())
}

fn link_metrics(linker: &mut Linker<State>, env: &str) -> Result<()> {
    linker.func_wrap(
        env,
        "proxy_define_metric",
        |mut g: Guest<'_>, kind: u32, name: u32, size: u32, result: u32| {
            wire(define_metric(&mut g, kind, name, size, result))
        },
    )?;
    linker.func_wrap(env, "proxy_get_metric", |mut g: Guest<'_>, id: u32, result: u32| {
        let value = g.data().metrics.get(id as usize).map(|metric| metric.value);
        wire(value.ok_or(Status::NotFound).and_then(|value| guest::put(&mut g, result, &value.to_le_bytes())))
    })?;
    linker.func_wrap(env, "proxy_record_metric", |mut g: Guest<'_>, id: u32, value: u64| {
        wire(metric(&mut g, id).map(|metric| match metric.kind {
            MetricKind::Counter => metric.value += value,
            MetricKind::Gauge | MetricKind::Histogram => metric.value = value,
        }))
    })?;
    linker.func_wrap(env, "proxy_increment_metric", |mut g: Guest<'_>, id: u32, offset: i64| {
        wire(metric(&mut g, id).and_then(|metric| match metric.kind {
            MetricKind::Histogram => Err(Status::BadArgument),
            MetricKind::Counter if offset <= 0 => Err(Status::BadArgument),
            MetricKind::Gauge if offset < 0 && metric.value < offset.unsigned_abs() => Err(Status::InternalFailure),
            MetricKind::Counter | MetricKind::Gauge => {
                metric.value = metric.value.wrapping_add_signed(offset);
                Ok(())
            }
        }))
    })?;
    Ok(())
}

fn link_shared(linker: &mut Linker<State>, env: &str) -> Result<()> {
    linker.func_wrap(
        env,
        "proxy_get_shared_data",
        |mut g: Guest<'_>, key: u32, size: u32, value: u32, value_size: u32, cas: u32| {
            wire(get_shared_data(&mut g, (key, size), (value, value_size), cas))
        },
    )?;
    linker.func_wrap(
        env,
        "proxy_set_shared_data",
        |mut g: Guest<'_>, key: u32, size: u32, value: u32, value_size: u32, cas: u32| {
            wire(set_shared_data(&mut g, (key, size), (value, value_size), cas))
        },
    )?;
    linker.func_wrap(env, "proxy_register_shared_queue", |mut g: Guest<'_>, name: u32, size: u32, result: u32| {
        wire(register_queue(&mut g, name, size, result))
    })?;
    linker.func_wrap(
        env,
        "proxy_resolve_shared_queue",
        |mut g: Guest<'_>, vm: u32, vm_size: u32, name: u32, size: u32, result: u32| {
            wire(resolve_queue(&mut g, (vm, vm_size), (name, size), result))
        },
    )?;
    linker.func_wrap(env, "proxy_enqueue_shared_queue", |mut g: Guest<'_>, queue: u32, item: u32, size: u32| {
        wire(enqueue(&mut g, queue, item, size))
    })?;
    linker.func_wrap(env, "proxy_dequeue_shared_queue", |mut g: Guest<'_>, queue: u32, item: u32, size: u32| {
        wire(dequeue(&mut g, queue, item, size))
    })?;
    Ok(())
}

fn log(guest: &mut Guest<'_>, level: u32, text: u32, size: u32) -> Answer {
    let text = String::from_utf8_lossy(&guest::bytes(guest, text, size)?).into_owned();
    let state = guest.data_mut();
    state.log.push(LogLine { at: state.now, level: LogLevel::from_wire(level), text });
    Ok(())
}

fn set_tick_period(guest: &mut Guest<'_>, period: u32) -> Answer {
    let state = guest.data_mut();
    let (root, now) = (state.root_id(), state.now);
    let root = state.roots.get_mut(&root).ok_or(Status::BadArgument)?;
    let period = Duration::from_millis(period.into());
    root.tick = (!period.is_zero()).then_some(Tick { period, next: now + period });
    Ok(())
}

fn set_effective_context(guest: &mut Guest<'_>, context: u32) -> Answer {
    let state = guest.data_mut();
    if !state.is_live(context) {
        return Err(Status::BadArgument);
    }
    state.effective = context;
    Ok(())
}

fn property_path(guest: &Guest<'_>, path: u32, size: u32) -> Answer<String> {
    Ok(guest::text(guest, path, size)?.replace('\0', "."))
}

fn get_property(guest: &mut Guest<'_>, path: u32, size: u32, value: u32, value_size: u32) -> Answer {
    let path = property_path(guest, path, size)?;
    match guest.data().property(&path) {
        None => Err(Status::NotFound),
        Some(None) => Err(Status::SerializationFailure),
        Some(Some(bytes)) => guest::give(guest, &bytes, value, value_size),
    }
}

/// As in Envoy, only a request has filter state; it is read back as `filter_state.wasm.<path>` or by its own path.
fn set_property(guest: &mut Guest<'_>, path: u32, size: u32, value: u32, value_size: u32) -> Answer {
    let path = property_path(guest, path, size)?;
    let value = guest::bytes(guest, value, value_size)?;
    let state = guest.data_mut();
    let context = state.context();
    let exchange = state.exchanges.get_mut(&context).ok_or(Status::NotFound)?;
    exchange.request.properties.insert(format!("filter_state.wasm.{path}"), Some(value.clone()));
    exchange.request.properties.insert(path, Some(value));
    Ok(())
}

fn define_metric(guest: &mut Guest<'_>, kind: u32, name: u32, size: u32, result: u32) -> Answer {
    let name = guest::text(guest, name, size)?;
    let kind = match kind {
        0 => MetricKind::Counter,
        1 => MetricKind::Gauge,
        2 => MetricKind::Histogram,
        _ => return Err(Status::BadArgument),
    };
    let metrics = &mut guest.data_mut().metrics;
    let id = metrics.iter().position(|metric| metric.name == name).unwrap_or_else(|| {
        metrics.push(Metric { name, kind, value: 0 });
        metrics.len() - 1
    });
    guest::put(guest, result, &(id as u32).to_le_bytes())
}

fn metric<'a>(guest: &'a mut Guest<'_>, id: u32) -> Answer<&'a mut Metric> {
    guest.data_mut().metrics.get_mut(id as usize).ok_or(Status::NotFound)
}

fn get_shared_data(guest: &mut Guest<'_>, key: (u32, u32), value: (u32, u32), cas_at: u32) -> Answer {
    let key = guest::bytes(guest, key.0, key.1)?;
    let (bytes, cas) = guest.data().shared_data.get(&key).cloned().ok_or(Status::NotFound)?;
    guest::give(guest, &bytes, value.0, value.1)?;
    guest::put(guest, cas_at, &cas.to_le_bytes())
}

fn set_shared_data(guest: &mut Guest<'_>, key: (u32, u32), value: (u32, u32), cas: u32) -> Answer {
    let key = guest::bytes(guest, key.0, key.1)?;
    let value = guest::bytes(guest, value.0, value.1)?;
    let entry = guest.data_mut().shared_data.entry(key).or_default();
    if cas != 0 && cas != entry.1 {
        return Err(Status::CasMismatch);
    }
    *entry = (value, entry.1 + 1);
    Ok(())
}

fn register_queue(guest: &mut Guest<'_>, name: u32, size: u32, result: u32) -> Answer {
    let name = guest::bytes(guest, name, size)?;
    let state = guest.data_mut();
    let root = state.root_id();
    let place = state.queues.iter().position(|queue| queue.name == name).unwrap_or_else(|| {
        state.queues.push(Queue { name, root, items: VecDeque::new() });
        state.queues.len() - 1
    });
    // The latest to register is the one that hears of new items.
    state.queues[place].root = root;
    guest::put(guest, result, &(place as u32 + 1).to_le_bytes())
}

fn resolve_queue(guest: &mut Guest<'_>, vm: (u32, u32), name: (u32, u32), result: u32) -> Answer {
    let vm = guest::text(guest, vm.0, vm.1)?;
    let name = guest::bytes(guest, name.0, name.1)?;
    let state = guest.data();
    let place = state.queues.iter().position(|queue| queue.name == name);
    let place = place.filter(|_| vm.is_empty() || vm == state.vm_id).ok_or(Status::NotFound)?;
    guest::put(guest, result, &(place as u32 + 1).to_le_bytes())
}

fn queue(state: &mut State, number: u32) -> Answer<&mut Queue> {
    (number as usize).checked_sub(1).and_then(|place| state.queues.get_mut(place)).ok_or(Status::NotFound)
}

fn enqueue(guest: &mut Guest<'_>, number: u32, item: u32, size: u32) -> Answer {
    let item = guest::bytes(guest, item, size)?;
    let state = guest.data_mut();
    let queue = queue(state, number)?;
    queue.items.push_back(item);
    let root = queue.root;
    state.events.push_back(Event::QueueReady { root, queue: number });
    Ok(())
}

fn dequeue(guest: &mut Guest<'_>, number: u32, item: u32, size: u32) -> Answer {
    let bytes = queue(guest.data_mut(), number)?.items.pop_front().ok_or(Status::Empty)?;
    guest::give(guest, &bytes, item, size)
}
