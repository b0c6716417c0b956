//! Draining: no grants, holds run out, ownerships go, and then it is over.

use turnstile_core::{Acquire, Command, Ending, Input, RejectReason};

use crate::bench::*;

#[test]
fn an_idle_host_is_drained_at_once() {
    let mut bench = Bench::ready(1);
    assert_eq!(bench.give(Input::Drain), [give_up("k"), Command::Drained]);
    assert_eq!(bench.give(Input::Drain), []);
    assert_eq!(bench.acquire(1, wants(2)), [reject(1, 2, RejectReason::Draining)]);
}

#[test]
fn holds_and_quarantines_run_out_first() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, Acquire { lock_delay: ms(2_000), ..wants(2) });
    bench.acquire(2, wants(1));
    bench.acquire(2, Acquire { keys: only("other"), ..wants(2) });
    let drained = bench.give(Input::Drain);
    assert_eq!(
        drained,
        [reject(2, 1, RejectReason::Draining), reject(2, 2, RejectReason::Draining), give_up("other"),]
    );
    bench.until(1_000);
    assert_eq!(bench.release(1, 2, Ending::Unclean), []);
    assert_eq!(bench.until(2_999), []);
    assert_eq!(bench.until(3_000), [give_up("k"), Command::Drained]);
}

#[test]
fn a_resumed_waiter_is_sent_elsewhere() {
    let mut bench = Bench::ready(1);
    bench.acquire(1, wants(2));
    bench.suspend(1);
    bench.give(Input::Drain);
    let resume = turnstile_core::Resume {
        waiters: vec![wants(3)],
        holds: vec![turnstile_core::RequestId(2)],
        ..Default::default()
    };
    assert_eq!(bench.resume(1, 2, resume), [reject(1, 3, RejectReason::Draining), ack(1, 2, VALID)]);
    assert_eq!(bench.release(1, 2, Ending::Clean), [give_up("k"), Command::Drained]);
}
