//! What is asked for on the wire, and what counts as an answer to it.

use super::*;
use crate::reentry::{HolderSecret, Reentry};

const SECRET: [u8; 24] = [7; 24];

fn join() -> Reentry {
    Reentry::Join(HolderSecret::from_wire(&SECRET).expect("a secret"))
}

impl Bench {
    /// Asks, and returns what went over the wire.
    fn asks(&mut self, owner: u32, ask: Ask) -> v1::Acquire {
        let ask = Ask { wait: Duration::from_secs(60), ..ask };
        self.session.acquire(self.now, RequestRef(owner), ask).expect("taken on");
        match self.drain().as_slice() {
            [client_item::Item::Acquire(acquire)] => acquire.clone(),
            other => panic!("asked with {other:?}"),
        }
    }

    fn grants(&mut self, id: u64, tokens: &[u64], holder_secret: &[u8]) {
        let heartbeat_seq = self.session.pulse.last_seq();
        let (keys, holder_secret) = (key_grants(tokens), holder_secret.to_vec());
        self.say([v1::Grant { id, keys, holder_secret, heartbeat_seq, valid_ms: VALID_MS, waited_ms: 0 }.into()]);
    }
}

#[test]
fn everything_that_is_asked_for_goes_over_the_wire() {
    let mut bench = Bench::live();
    let shared = v1::KeyRequest { key: "default/b".to_owned(), mode: v1::Mode::Shared.into(), limit: 0 };
    let limit = v1::KeyRequest { key: "default/a".to_owned(), mode: v1::Mode::Limit.into(), limit: 4 };
    let ask = Ask {
        keys: vec![shared.clone(), limit.clone()],
        queue_max: 30,
        fail_fast: true,
        hold: Duration::from_secs(7),
        lock_delay: Duration::from_millis(8),
        who: v1::Who { method: "GET".to_owned(), ..Default::default() },
        ..Default::default()
    };
    let acquire = bench.asks(1, ask);
    let expected = v1::Acquire {
        id: acquire.id,
        keys: vec![shared, limit],
        wait_ms: 60_000,
        hold_ms: 7_000,
        lock_delay_ms: 8,
        reentry_secret: Vec::new(),
        who: Some(v1::Who { method: "GET".to_owned(), ..Default::default() }),
        reentrant: false,
        fail_fast: true,
        queue_max: 30,
    };
    assert_eq!(acquire, expected);
}

#[test]
fn a_hold_is_opened_or_joined_and_not_both() {
    let mut bench = Bench::live();
    for (owner, reentry, expected) in [
        (1, Reentry::Closed, (false, vec![])),
        (2, Reentry::Open, (true, vec![])),
        (3, join(), (false, SECRET.to_vec())),
    ] {
        let acquire = bench.asks(owner, Ask { reentry, ..ask(owner) });
        assert_eq!((acquire.reentrant, acquire.reentry_secret), expected);
    }
}

#[test]
fn a_grant_brings_all_tokens_and_the_secret_if_it_was_asked_for() {
    let mut bench = Bench::live();
    let secret = HolderSecret::from_wire(&SECRET).expect("a secret");
    for (owner, reentry, its_kin) in [
        (1, Reentry::Closed, Kin::None),
        (2, Reentry::Open, Kin::Founder(secret.clone())),
        (3, join(), Kin::Member(secret)),
    ] {
        let keys = keys(&["default/b", "default/a", "default/c"]);
        let id = bench.asks(owner, Ask { keys, reentry, ..Default::default() }).id;
        bench.grants(id, &[12, 11, 13], &SECRET);
        let outcomes = bench.outcomes();
        let [(_, Outcome::Granted(granted))] = outcomes.as_slice() else { panic!("{outcomes:?}") };
        assert_eq!((granted.tokens.text().as_str(), &granted.kin), ("12,11,13", &its_kin));
        assert!(bench.session.believes(bench.now, RequestRef(owner), &granted.tokens));
        bench.session.release(RequestRef(owner), Ending::Clean);
        assert_eq!(bench.drain(), [release(id, Ending::Clean)]);
    }
}

/// Nobody can tell what is held; so it goes back, and nothing goes through.
#[test]
fn a_grant_that_does_not_answer_what_was_asked_goes_back_unsent() {
    let two = ["default/a", "default/b"].as_slice();
    let one = ["default/a"].as_slice();
    for (names, reentry, tokens, secret) in [
        (two, Reentry::Closed, [].as_slice(), [].as_slice()),
        (two, Reentry::Closed, &[1], &[]),
        (two, Reentry::Closed, &[1, 2, 3], &[]),
        (one, Reentry::Closed, &[], &[]),
        (one, Reentry::Closed, &[1, 2], &[]),
        (one, Reentry::Open, &[1], &[]),
        (one, Reentry::Open, &[1], &[7; 23]),
        (one, Reentry::Open, &[1], &[7; 25]),
        (one, join(), &[1], &[]),
        (two, join(), &[1], &SECRET),
    ] {
        let mut bench = Bench::live();
        let id = bench.asks(1, Ask { keys: keys(names), reentry: reentry.clone(), ..Default::default() }).id;
        bench.grants(id, tokens, secret);
        let case = format!("{names:?} {reentry:?} {tokens:?}, a secret of {} bytes", secret.len());
        assert_eq!(bench.outcomes(), [(1, Outcome::Rejected(Rejection::Invalid))], "{case}");
        assert_eq!(bench.drain(), [release(id, Ending::Unsent)], "{case}");
        bench.session.release(RequestRef(1), Ending::Clean);
        bench.grants(id, tokens, secret);
        assert_eq!((bench.drain(), bench.outcomes()), (vec![], vec![]), "{case}: answered once");
    }
}

/// A secret is good at one run of one host only; that it is worth nothing any more is the host's to say.
#[test]
fn who_asks_anew_keeps_its_kin() {
    let mut bench = Bench::live();
    bench.asks(1, Ask { keys: keys(&["default/a", "default/b"]), reentry: join(), ..Default::default() });
    bench.asks(2, Ask { reentry: Reentry::Open, ..ask(2) });
    bench.break_stream();
    bench.pass_backoff();
    let resume = bench.open().resume.expect("resumes");
    let told: Vec<_> = resume.waiters.iter().map(|it| (it.keys.len(), it.reentrant, it.reentry_secret.len())).collect();
    assert_eq!(told, [(2, false, 24), (1, true, 0)]);
    // The host was restarted.
    bench.welcome(false);
    let items = bench.drain();
    let again: Vec<_> = items
        .iter()
        .filter_map(|item| match item {
            client_item::Item::Acquire(it) => Some((it.keys.len(), it.reentrant, it.reentry_secret.len())),
            _ => None,
        })
        .collect();
    assert_eq!(again, told);
    bench.reject(2, v1::RejectReason::NoSuchHold);
    assert_eq!(bench.outcomes(), [(1, Outcome::Rejected(Rejection::NoSuchHold))]);
}

#[test]
fn an_expired_grant_of_several_keys_is_asked_for_again_as_it_was() {
    let mut bench = Bench::live();
    let first = bench.asks(1, Ask { keys: keys(&["default/a", "default/b"]), reentry: join(), ..Default::default() });
    bench.freeze(10_000);
    bench.grants(first.id, &[1, 2], &SECRET);
    let items = bench.drain();
    let [returned, client_item::Item::Acquire(second)] = items.as_slice() else { panic!("{items:?}") };
    assert_eq!(*returned, release(first.id, Ending::Unsent));
    assert_eq!(*second, v1::Acquire { id: first.id + 1, wait_ms: 50_000, ..first });
}

/// An older grant of the same request is told apart by every token: a hold that is joined has the same one again.
#[test]
fn a_grant_is_believed_under_all_its_tokens_only() {
    let mut bench = Bench::live();
    let id = bench.asks(1, Ask { keys: keys(&["default/a", "default/b"]), ..Default::default() }).id;
    bench.grants(id, &[5, 9], &[]);
    for tokens in [[5].as_slice(), &[5, 8], &[5, 9, 9], &[9, 5]] {
        let tokens = Tokens::parse(&key_grants(tokens)).expect("there are some");
        assert!(!bench.session.believes(bench.now, RequestRef(1), &tokens), "{tokens:?}");
    }
    assert!(bench.believes(1));
}
