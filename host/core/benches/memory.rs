//! What the engine's tables weigh: bytes on the heap, as asked of the allocator. `cargo xtask bench engine` runs this.

mod load;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use load::{Load, exclusive};

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

/// As many as the host tracks by default; and about as many, where tables that grow by doubling have least and most room
/// to spare. The first is the one that counts.
const COUNTS: [usize; 3] = [1_000_000, 900_000, (1 << 20) + 1];

fn main() {
    weigh_all("idle_owned_key", idle_keys);
    weigh_all("waiter", waiters);
    weigh_all("hold", holds);
}

fn weigh_all(name: &str, grow: fn(&mut Load, usize)) {
    for count in COUNTS {
        println!("{name} {count} {}", weigh(count, grow));
    }
}

/// Bytes for each of `count` things.
fn weigh(count: usize, grow: fn(&mut Load, usize)) -> usize {
    let mut load = Load::new();
    let before = BYTES.load(Ordering::Relaxed);
    grow(&mut load, count);
    let bytes = BYTES.load(Ordering::Relaxed) - before;
    drop(load);
    bytes / count
}

fn idle_keys(load: &mut Load, count: usize) {
    (0..count).for_each(|number| load.cycle(&exclusive(number)));
    assert_eq!(load.owned_keys(), count);
}

/// All of one key.
fn waiters(load: &mut Load, count: usize) {
    let want = exclusive(1);
    for _ in 0..=count {
        load.acquire(&want);
    }
}

/// Each of a key of its own, the key included.
fn holds(load: &mut Load, count: usize) {
    for number in 0..count {
        load.acquire(&exclusive(number));
    }
}
