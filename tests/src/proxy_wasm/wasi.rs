//! The few WASI calls that a filter built for `wasm32-unknown-unknown` or `wasip1` makes; time is virtual.

use wasmtime::{Linker, Result, bail};

use super::abi::LogLevel;
use super::guest::{self, Guest};
use super::state::{LogLine, State};

const SUCCESS: u32 = 0;
const BAD_ADDRESS: u32 = 21;
const INVALID: u32 = 28;

pub(super) fn link(linker: &mut Linker<State>) -> Result<()> {
    let module = "wasi_snapshot_preview1";
    linker.func_wrap(module, "clock_time_get", clock_time_get)?;
    linker.func_wrap(module, "random_get", random_get)?;
    linker.func_wrap(module, "fd_write", fd_write)?;
    linker
        .func_wrap(module, "environ_sizes_get", |mut g: Guest<'_>, count: u32, size: u32| empty(&mut g, count, size))?;
    linker.func_wrap(module, "environ_get", |_: u32, _: u32| SUCCESS)?;
    linker.func_wrap(module, "args_sizes_get", |mut g: Guest<'_>, count: u32, size: u32| empty(&mut g, count, size))?;
    linker.func_wrap(module, "args_get", |_: u32, _: u32| SUCCESS)?;
    linker.func_wrap(module, "sched_yield", || SUCCESS)?;
    linker.func_wrap(module, "proc_exit", |code: u32| -> Result<()> { bail!("the plugin exited with code {code}") })?;
    Ok(())
}

/// Clock 0 is wall-clock time, clock 1 monotonic.
fn clock_time_get(mut guest: Guest<'_>, clock: u32, _precision: u64, result: u32) -> u32 {
    let state = guest.data();
    let time = match clock {
        0 => state.now + state.wall_offset,
        1 => state.now,
        _ => return INVALID,
    };
    errno(guest::put(&mut guest, result, &(time.as_nanos() as u64).to_le_bytes()))
}

/// Reproducible: the same in every run.
fn random_get(mut guest: Guest<'_>, buffer: u32, size: u32) -> u32 {
    let mut bytes = Vec::with_capacity(size as usize);
    while bytes.len() < size as usize {
        let x = &mut guest.data_mut().random;
        *x ^= *x << 13;
        *x ^= *x >> 7;
        *x ^= *x << 17;
        bytes.extend(x.to_le_bytes());
    }
    errno(guest::put(&mut guest, buffer, &bytes[..size as usize]))
}

/// What the plugin prints becomes lines of its log.
fn fd_write(mut guest: Guest<'_>, _fd: u32, vectors: u32, count: u32, written: u32) -> u32 {
    let mut all = Vec::new();
    for index in 0..count {
        let Ok(vector) = guest::bytes(&guest, vectors.wrapping_add(index.wrapping_mul(8)), 8) else {
            return BAD_ADDRESS;
        };
        let word = |at: usize| u32::from_le_bytes([vector[at], vector[at + 1], vector[at + 2], vector[at + 3]]);
        let Ok(part) = guest::bytes(&guest, word(0), word(4)) else {
            return BAD_ADDRESS;
        };
        all.extend(part);
    }
    let text = String::from_utf8_lossy(&all).trim_end().to_owned();
    let at = guest.data().now;
    guest.data_mut().log.push(LogLine { at, level: LogLevel::Info, text });
    errno(guest::put(&mut guest, written, &(all.len() as u32).to_le_bytes()))
}

fn empty(guest: &mut Guest<'_>, count: u32, size: u32) -> u32 {
    let zero = 0u32.to_le_bytes();
    errno(guest::put(guest, count, &zero).and_then(|()| guest::put(guest, size, &zero)))
}

fn errno(answer: guest::Answer) -> u32 {
    if answer.is_ok() { SUCCESS } else { BAD_ADDRESS }
}
