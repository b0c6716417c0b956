//! Reading and writing the guest's memory from a hostcall.

use wasmtime::{AsContext, AsContextMut, Caller};

use super::abi::{Headers, Status};
use super::state::State;

/// The VM as a hostcall sees it.
pub(super) type Guest<'a> = Caller<'a, State>;

/// What a hostcall comes to; `?` on it answers the status at once.
pub(super) type Answer<T = ()> = Result<T, Status>;

pub(super) fn wire(answer: Answer) -> u32 {
    match answer {
        Ok(()) => Status::Ok as u32,
        Err(status) => status as u32,
    }
}

pub(super) fn bytes(guest: &Guest<'_>, pointer: u32, size: u32) -> Answer<Vec<u8>> {
    let memory = guest.data().memory.ok_or(Status::InternalFailure)?;
    let start = pointer as usize;
    let end = start.checked_add(size as usize).ok_or(Status::InvalidMemoryAccess)?;
    let bytes = memory.data(guest.as_context()).get(start..end);
    bytes.map(<[u8]>::to_vec).ok_or(Status::InvalidMemoryAccess)
}

/// Text that Envoy would take as any bytes; ours is always UTF-8, else it is a mistake.
pub(super) fn text(guest: &Guest<'_>, pointer: u32, size: u32) -> Answer<String> {
    String::from_utf8(bytes(guest, pointer, size)?).map_err(|_| Status::BadArgument)
}

pub(super) fn headers(guest: &Guest<'_>, pointer: u32, size: u32) -> Answer<Headers> {
    Headers::from_wire(&bytes(guest, pointer, size)?).ok_or(Status::BadArgument)
}

pub(super) fn put(guest: &mut Guest<'_>, pointer: u32, value: &[u8]) -> Answer {
    let memory = guest.data().memory.ok_or(Status::InternalFailure)?;
    let written = memory.write(guest.as_context_mut(), pointer as usize, value);
    written.map_err(|_| Status::InvalidMemoryAccess)
}

/// Hands the guest a copy of `value` in memory of its own; nothing for an empty one.
pub(super) fn give(guest: &mut Guest<'_>, value: &[u8], pointer_at: u32, size_at: u32) -> Answer {
    let mut pointer = 0;
    if !value.is_empty() {
        let malloc = guest.data().malloc.clone().ok_or(Status::InternalFailure)?;
        let size = u32::try_from(value.len()).map_err(|_| Status::InternalFailure)?;
        pointer = malloc.call(guest.as_context_mut(), size).map_err(|_| Status::InternalFailure)?;
        put(guest, pointer, value)?;
    }
    put(guest, pointer_at, &pointer.to_le_bytes())?;
    put(guest, size_at, &(value.len() as u32).to_le_bytes())
}
