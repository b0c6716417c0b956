//! How fast the engine alone is. `cargo xtask bench engine` runs this and sums it up.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a bench may panic")]

#[path = "load/cpu.rs"]
mod cpu;
mod load;

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

use cpu::CpuTime;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use load::{Load, Want, exclusive, key};
use turnstile_core::Mode;

/// Waiters or holders that the one key has beside the one at work.
const CROWDS: [usize; 3] = [1, 100, 100_000];

criterion_group! {
    name = engine;
    config = Criterion::default()
        .with_measurement(CpuTime)
        .sample_size(20)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2))
        .without_plots();
    targets = cycles, handoffs, beside
}
criterion_main!(engine);

/// Acquire and release of free keys that are owned already.
fn cycles(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("cycles");
    group.throughput(Throughput::Elements(1));
    for (name, keys, at_once) in
        [("distinct keys/10000", 10_000, 1), ("distinct keys/1000000", 1_000_000, 1), ("two keys", 20_000, 2)]
    {
        let mut load = Load::new();
        let wants: Want = (0..keys).map(one).collect();
        wants.chunks(at_once).for_each(|want| load.cycle(want));
        let mut next = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                // Far from the last one in memory.
                next = (next + 7_919 * at_once) % keys;
                load.cycle(&wants[next..next + at_once]);
            });
        });
    }
    group.finish();
}

/// Release, and the grant to the next of those that wait; each that leaves is followed by one more.
fn handoffs(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("handoffs");
    group.throughput(Throughput::Elements(1));
    let limited = |limit| Mode::Limit(NonZeroU32::new(limit).expect("above 0"));
    let wants = [
        ("one key", exclusive(1), 1),
        ("limit 4", vec![(key(1), limited(4))], 4),
        ("two keys", vec![one(1), one(2)], 1),
    ];
    for (name, want, holders) in wants {
        for crowd in CROWDS {
            let mut load = Load::new();
            let mut line: VecDeque<_> = (0..holders + crowd).map(|_| load.acquire(&want)).collect();
            group.bench_function(BenchmarkId::new(name, crowd), |bencher| {
                bencher.iter(|| load.hand_on(&mut line, &want));
            });
        }
    }
    group.finish();
}

/// Acquire and release beside others that hold the same key.
fn beside(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("beside");
    group.throughput(Throughput::Elements(1));
    let most = Mode::Limit(NonZeroU32::new(1_000_000).expect("above 0"));
    for (name, mode) in [("shared", Mode::Shared), ("limited", most)] {
        for crowd in CROWDS {
            let mut load = Load::new();
            let want = vec![(key(1), mode)];
            for _ in 0..crowd {
                load.acquire(&want);
            }
            group.bench_function(BenchmarkId::new(name, crowd), |bencher| bencher.iter(|| load.cycle(&want)));
        }
    }
    group.finish();
}

fn one(number: usize) -> (turnstile_core::LockKey, Mode) {
    (key(number), Mode::Exclusive)
}
