//! Sessions: heartbeats, silence, broken streams.

use turnstile_core::{Command, EndReason, Ending, HeartbeatSeq, Input, RejectReason, SessionId};

use crate::bench::*;

fn heartbeat(session: u64, seq: u64) -> Input {
    Input::Heartbeat { session: SessionId(session), seq: HeartbeatSeq(seq) }
}

#[test]
fn a_heartbeat_is_answered_with_what_may_be_believed() {
    let mut bench = Bench::ready(1);
    bench.until(1_000);
    assert_eq!(bench.give(heartbeat(1, 2)), [ack(1, 2, VALID)]);
    // Not larger: no news.
    assert_eq!(bench.give(heartbeat(1, 2)), []);
    assert_eq!(bench.until(4_999), []);
    assert_eq!(bench.until(5_000), [end(1, EndReason::Expired)]);
    assert_eq!(bench.engine.session_count(), 0);
}

#[test]
fn what_names_an_unknown_session_is_told_so() {
    let mut bench = Bench::ready(1);
    let unknown = [end(9, EndReason::Unknown)];
    assert_eq!(bench.give(heartbeat(9, 1)), unknown);
    assert_eq!(bench.acquire(9, wants(1)), unknown);
    assert_eq!(bench.release(9, 1, Ending::Clean), unknown);
    assert_eq!(bench.cancel(9, 1), unknown);
    assert_eq!(bench.suspend(9), unknown);
    assert_eq!(bench.resume(9, 2, turnstile_core::Resume::default()), unknown);
}

#[test]
fn a_silent_sessions_holds_end_uncleanly_and_its_waiters_leave() {
    let mut bench = Bench::ready(3);
    bench.acquire(1, wants(2));
    bench.acquire(2, wants(1));
    bench.acquire(1, wants(3));
    bench.acquire(3, wants(1));
    bench.until(3_000);
    bench.give(heartbeat(3, 2));
    let commands = bench.until(4_000);
    assert_eq!(commands, [end(1, EndReason::Expired), end(2, EndReason::Expired)]);
    assert_eq!((bench.engine.hold_count(), bench.engine.waiter_count()), (0, 1));
    let mut commands = Vec::new();
    for step in 4..=18 {
        commands.extend(bench.until(step * 1_000));
        commands.extend(bench.give(heartbeat(3, step)));
        commands.retain(|command| !matches!(command, Command::AckHeartbeat { .. }));
    }
    assert_eq!(commands, []);
    // Lock delay from 4 s.
    assert!(matches!(bench.until(19_000)[..], [Command::Grant { session: SessionId(3), .. }]));
}

#[test]
fn waiters_of_a_suspended_session_are_passed_over_and_keep_their_place() {
    let mut bench = Bench::ready(3);
    bench.acquire(1, wants(2));
    bench.acquire(2, wants(1));
    bench.acquire(3, wants(1));
    assert_eq!(bench.suspend(2), []);
    assert_eq!(bench.release(1, 2, Ending::Clean), [grant(3, 1, token(1, 2), 0, VALID)]);
    bench.acquire(1, wants(3));
    let resume = turnstile_core::Resume { waiters: vec![wants(1)], ..Default::default() };
    assert_eq!(bench.resume(2, 2, resume), [ack(2, 2, VALID)]);
    let commands = bench.release(3, 1, Ending::Clean);
    assert!(matches!(commands[..], [Command::Grant { session: SessionId(2), .. }]), "{commands:?}");
}

#[test]
fn a_lone_waiter_of_a_suspended_session_is_granted_when_it_resumes() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    bench.acquire(2, wants(1));
    bench.suspend(2);
    assert_eq!(bench.release(1, 2, Ending::Clean), []);
    let resume = turnstile_core::Resume { waiters: vec![wants(1)], ..Default::default() };
    let commands = bench.resume(2, 2, resume);
    let granted = Command::Grant {
        session: SessionId(2),
        request: turnstile_core::RequestId(1),
        keys: alone(token(1, 2)),
        secret: None,
        waited: ms(0),
        seq: HeartbeatSeq(2),
        valid: VALID,
    };
    assert_eq!(commands, [granted, ack(2, 2, VALID)]);
}

#[test]
fn a_suspended_session_is_over_after_its_time() {
    let mut bench = Bench::ready(1);
    bench.until(1_000);
    bench.suspend(1);
    // What is still in the pipe of the old stream is no sign of life.
    assert_eq!(bench.give(heartbeat(1, 2)), []);
    assert_eq!(bench.until(4_000), [end(1, EndReason::Expired)]);
}

#[test]
fn a_session_that_went_quiet_is_passed_over_until_it_is_heard() {
    let mut bench = Bench::ready(2);
    bench.until(3_700);
    bench.give(heartbeat(1, 2));
    // 3.92 s after the Hello at 0 the promise ends: too little is left at 3.7 s.
    assert_eq!(bench.acquire(2, wants(1)), []);
    let commands = bench.acquire(1, wants(2));
    assert!(matches!(commands[..], [Command::Grant { session: SessionId(1), .. }]), "{commands:?}");
    assert_eq!(bench.give(heartbeat(2, 2)), [ack(2, 2, VALID)]);
    let commands = bench.release(1, 2, Ending::Clean);
    assert!(matches!(commands[..], [Command::Grant { session: SessionId(2), .. }]), "{commands:?}");
}

#[test]
fn what_a_frozen_host_hears_first_saves_the_session() {
    let mut bench = Bench::ready(2);
    bench.acquire(1, wants(2));
    bench.freeze(9_000);
    assert_eq!(bench.give(heartbeat(1, 2)), [ack(1, 2, VALID)]);
    assert_eq!(bench.until(9_000), [end(2, EndReason::Expired)]);
    assert_eq!(bench.engine.hold_count(), 1);
    // And one that has asked, but was not heard since, gets nothing.
    assert_eq!(bench.acquire(1, tries(3)), [reject_with(1, 3, RejectReason::Conflict, Some(0), 0)]);
}

#[test]
fn a_session_opened_twice_stops_the_engine() {
    let mut bench = Bench::ready(1);
    assert_eq!(bench.give(Input::OpenSession { session: SessionId(1), seq: HeartbeatSeq(1) }), []);
    assert_eq!(bench.engine.fault(), Some(&turnstile_core::Fault::SessionOpenedTwice(SessionId(1))));
    assert_eq!(bench.acquire(1, wants(2)), []);
    assert_eq!(bench.engine.next_deadline(), None);
}
