//! Fencing tokens (I2): epochs, sequences, and what happens when they run out.

use turnstile_core::{Acquire, Command, Ending, Epoch, Fault, HeartbeatSeq, Input, RejectReason, SessionId, Token};

use crate::bench::*;

const THREE_QUARTERS: u32 = Token::SEQUENCE_MAX / 4 * 3;

/// Grants and releases until the next token has this sequence; returns the next request's id.
fn spend(bench: &mut Bench, from: u32, to: u32) -> u64 {
    for sequence in from..to {
        let request = u64::from(sequence) + 1;
        bench.engine.handle(at(0), Input::Acquire { session: SessionId(1), acquire: wants(request) });
        let release = Input::Release {
            session: SessionId(1),
            request: turnstile_core::RequestId(request),
            ending: Ending::Clean,
        };
        bench.engine.handle(at(0), release);
        while let Some(command) = bench.engine.poll_command() {
            assert!(matches!(command, Command::Grant { .. }), "{command:?} at {sequence}");
        }
    }
    u64::from(to) + 1
}

#[test]
fn a_new_epoch_is_asked_for_in_time_and_grants_go_on_meanwhile() {
    let mut bench = Bench::ready(1);
    let request = spend(&mut bench, 1, THREE_QUARTERS);
    assert_eq!(
        bench.acquire(1, wants(request)),
        [grant(1, request, token(1, THREE_QUARTERS), 0, VALID), claim_with("k", 2, DELAY, true),]
    );
    bench.release(1, request, Ending::Clean);
    let next = token(1, THREE_QUARTERS + 1);
    assert_eq!(bench.acquire(1, wants(request + 1)), [grant(1, request + 1, next, 0, VALID)]);
    bench.release(1, request + 1, Ending::Clean);
    assert_eq!(bench.gain("k", 2, 7), []);
    assert_eq!(bench.acquire(1, wants(request + 2)), [grant(1, request + 2, token(7, 0), 0, VALID)]);
}

#[test]
fn used_up_tokens_stop_the_grants_until_the_epoch_comes() {
    let mut bench = Bench::ready(2);
    let request = spend(&mut bench, 1, THREE_QUARTERS);
    bench.acquire(1, wants(request));
    bench.release(1, request, Ending::Clean);
    let request = spend(&mut bench, THREE_QUARTERS + 1, Token::SEQUENCE_MAX + 1);
    assert_eq!(bench.acquire(1, Acquire { wait: ms(500), ..wants(request) }), []);
    assert_eq!(bench.acquire(2, wants(1)), []);
    assert_eq!(bench.until(500), [reject_with(1, request, RejectReason::TokensExhausted, None, 1)]);
    assert_eq!(bench.gain("k", 2, 2), [grant(2, 1, token(2, 0), 500, VALID)]);
}

#[test]
fn an_epoch_past_the_range_gives_no_tokens() {
    let mut bench = Bench::new(|_| {});
    bench.open(1);
    bench.acquire(1, Acquire { wait: ms(500), ..wants(1) });
    assert_eq!(bench.gain("k", 1, Token::EPOCH_MAX.0 + 1), []);
    assert_eq!(bench.until(500), []);
    // The wait was stretched for the store.
    assert_eq!(bench.until(1_000), [reject(1, 1, RejectReason::TokensExhausted), give_up("k")]);
}

#[test]
fn an_epoch_that_went_back_stops_the_engine() {
    let mut bench = Bench::ready(1);
    bench.acquire(1, Acquire { lock_delay: DELAY * 2, ..wants(2) });
    assert_eq!(bench.gain_with("k", 2, 0, DELAY * 2, 0), []);
    assert_eq!(bench.engine.fault(), Some(&Fault::EpochWentBack { key: key("k"), epoch: Epoch(0) }));

    let mut bench = Bench::ready(1);
    bench.acquire(1, wants(2));
    bench.acquire(1, wants(3));
    bench.give(Input::OwnershipLost { key: key("k") });
    assert_eq!(bench.gain("k", 2, 1), []);
    assert_eq!(bench.engine.fault(), Some(&Fault::EpochWentBack { key: key("k"), epoch: Epoch(1) }));
    assert_eq!(bench.give(Input::Heartbeat { session: SessionId(1), seq: HeartbeatSeq(9) }), []);
}

#[test]
fn the_sequence_goes_on_when_a_claim_only_raised_the_lock_delay() {
    let mut bench = Bench::ready(1);
    assert_eq!(bench.acquire(1, Acquire { lock_delay: DELAY * 2, ..wants(2) }), [claim_with("k", 2, DELAY * 2, false)]);
    assert_eq!(bench.gain_with("k", 2, 1, DELAY * 2, 0), [grant(1, 2, token(1, 1), 0, VALID)]);
}
