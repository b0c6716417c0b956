//! How fast the engine alone is, and how much an idle owned key weighs:
//! `cargo run --release -p turnstile-core --example cycles`
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // A measuring tool.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use turnstile_core::{
    Acquire, ClaimId, Command, Config, Ending, Engine, Epoch, HeartbeatSeq, Input, Instant, LockKey, RequestId,
    SessionId,
};

struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything to the system's allocator, and counts.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Load {
    engine: Engine,
    now: Instant,
    requests: u64,
}

impl Load {
    fn give(&mut self, input: Input) {
        self.engine.handle(self.now, input);
    }

    fn acquire(&mut self, session: u64, key: &LockKey) -> u64 {
        self.requests += 1;
        let acquire = Acquire {
            wait: Duration::from_secs(60),
            lock_delay: Duration::from_secs(15),
            ..Acquire::of_key(RequestId(self.requests), key.clone())
        };
        self.give(Input::Acquire { session: SessionId(session), acquire });
        self.requests
    }

    fn release(&mut self, session: u64, request: u64) {
        self.give(Input::Release { session: SessionId(session), request: RequestId(request), ending: Ending::Clean });
    }

    /// Answers claims and lets time pass a little, as a driver would.
    fn settle(&mut self) -> usize {
        let mut grants = 0;
        while let Some(command) = self.engine.poll_command() {
            match command {
                Command::ClaimOwnership { key, claim, lock_delay, .. } => self.give(Input::OwnershipGained {
                    key,
                    claim: ClaimId(claim.0),
                    epoch: Epoch(claim.0),
                    lock_delay,
                    quarantined_until: Instant::default(),
                }),
                Command::Grant { .. } => grants += 1,
                _ => {}
            }
        }
        grants
    }
}

fn main() {
    let keys: Vec<LockKey> =
        (0..1_000_000).map(|number| LockKey::parse(&format!("default/account:{number}")).unwrap()).collect();
    let engine = Engine::new(Config { idle_ownership: Duration::from_secs(1_000_000), ..Config::default() });
    let mut load = Load { engine, now: Instant::default(), requests: 0 };
    load.give(Input::LeaseRenewed { until: Instant::from_micros(u64::MAX / 2) });
    for session in 0..64 {
        load.give(Input::OpenSession { session: SessionId(session), seq: HeartbeatSeq(1) });
    }
    cycles(&mut load, &keys[..1], "one key");
    cycles(&mut load, &keys[..10_000], "10,000 keys");
    handoffs(&mut load, &keys[0], 64);
    handoffs(&mut load, &keys[1], 8_192);

    let before = BYTES.load(Ordering::Relaxed);
    for key in &keys {
        let request = load.acquire(0, key);
        load.settle();
        load.release(0, request);
    }
    let grown = BYTES.load(Ordering::Relaxed) - before;
    println!("{} owned keys: {} bytes each", load.engine.owned_key_count(), grown / (keys.len() - 10_000));
    cycles(&mut load, &keys, "1,000,000 keys");
}

/// Acquire and release of free owned keys.
fn cycles(load: &mut Load, keys: &[LockKey], what: &str) {
    for key in keys {
        let request = load.acquire(0, key);
        load.settle();
        load.release(0, request);
    }
    let count = 1_000_000;
    let started = std::time::Instant::now();
    for number in 0..count {
        let session = number as u64 % 64;
        let request = load.acquire(session, &keys[number * 7 % keys.len()]);
        load.settle();
        load.release(session, request);
        load.settle();
    }
    let taken = started.elapsed();
    println!("{what}: {:.0} cycles/s", f64::from(count as u32) / taken.as_secs_f64());
}

/// Release to grant, with `waiters` waiting on one key.
fn handoffs(load: &mut Load, key: &LockKey, waiters: u64) {
    let mut queue: std::collections::VecDeque<(u64, u64)> =
        (0..=waiters).map(|number| (number % 64, load.acquire(number % 64, key))).collect();
    load.settle();
    let count = 500_000;
    let mut grants = 0;
    let started = std::time::Instant::now();
    for _ in 0..count {
        let Some((session, request)) = queue.pop_front() else { break };
        load.release(session, request);
        queue.push_back((session, load.acquire(session, key)));
        grants += load.settle();
    }
    let taken = started.elapsed();
    println!("{waiters} waiters: {:.0} handoffs/s ({grants} grants)", f64::from(count) / taken.as_secs_f64());
    for (session, request) in queue {
        load.release(session, request);
        load.settle();
    }
}
