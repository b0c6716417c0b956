//! TCP ports for components that must be found again at the same place after a restart.
//!
//! A port that the kernel gives out for port 0 may be taken, between two runs of the component, as the source of some
//! outgoing connection. So these come from below the range of such ports.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

const LOWEST: u32 = 12_000;
const COUNT: u32 = 18_000;

static NEXT: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(std::process::id().wrapping_mul(331)));

/// A TCP port of the loopback address that nothing listens on, and that no other caller in this process gets.
///
/// # Panics
/// If no port is free.
pub fn free_port() -> u16 {
    for _ in 0..COUNT {
        let candidate = LOWEST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = u16::try_from(candidate).expect("the range ends below 65536");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no TCP port from {LOWEST} to {} is free", LOWEST + COUNT - 1);
}
