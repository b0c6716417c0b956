//! Several hosts: who is asked, and what becomes of requests when a host dies, drains or comes back.

use std::time::Duration;

use turnstile_protocol::v1::Ending;
use turnstile_tests::artifacts::plugin_wasm;
use turnstile_tests::preference;
use turnstile_tests::proxy_wasm::{InFlight, ModelHost, Outcome, Policy, Request, Response, Setup, Worker};

use super::{MS, TRANSFER, held, problem, problem_type, transfer};

const NAMES: [&str; 3] = ["host-a", "host-b", "host-c"];

struct Stage {
    worker: Worker,
    hosts: [ModelHost; 3],
}

fn setup(rules: &[&str], known: &[&str]) -> Setup {
    let json = serde_json::json!({ "clusters": NAMES, "rules": rules }).to_string();
    let clusters = known.iter().map(|name| (*name).to_owned()).collect();
    Setup { clusters, ..Setup::new(json) }
}

impl Stage {
    fn new(rules: &[&str]) -> Self {
        Self::of(&setup(rules, &NAMES))
    }

    fn of(setup: &Setup) -> Self {
        let worker = Worker::start(&plugin_wasm(), setup);
        let hosts = [0, 1, 2].map(|index| worker.host_of(index));
        Self { worker, hosts }
    }

    fn policy(&self, policy: Policy) {
        self.hosts.iter().for_each(|host| host.policy(policy));
    }

    fn advance(&self, ms: u32) {
        self.worker.advance(ms * MS);
    }

    fn metric(&self, name: &str) -> u64 {
        self.advance(1_000);
        let metrics = self.worker.metrics();
        metrics.iter().find(|metric| metric.name == format!("turnstile.{name}")).map_or(0, |metric| metric.value)
    }

    /// How many lines of the log speak of this host with these words.
    fn logged(&self, host: usize, words: &str) -> usize {
        let log = self.worker.log();
        log.iter().filter(|line| line.text.contains(NAMES[host]) && line.text.contains(words)).count()
    }

    /// Nothing is held or waited for anywhere.
    fn is_clean(&self) {
        for (host, name) in self.hosts.iter().zip(NAMES) {
            assert_eq!((host.holding(), host.waiting()), (vec![], vec![]), "{name}");
        }
        self.worker.check();
    }
}

fn order_of(account: u32) -> Vec<usize> {
    preference::order(&NAMES, &format!("default/account:{account}"))
}

/// An account whose key prefers the hosts in this order.
fn account(order: [usize; 3]) -> u32 {
    (0..).find(|account| order_of(*account) == order).expect("some account does")
}

fn answered(request: &InFlight) {
    request.respond(Response::new(200, "done"));
    assert!(matches!(request.outcome(), Outcome::Answered(_)), "{:?}", request.outcome());
}

#[test]
fn requests_go_where_the_documented_hash_sends_them() {
    let stage = Stage::new(&[TRANSFER, "POST /pair/{a}/{b} key=account:{a},account:{b}"]);
    for account in 0..30 {
        let request = held(&stage.worker, transfer(account));
        let at: Vec<usize> = (0..3).filter(|index| !stage.hosts[*index].holding().is_empty()).collect();
        assert_eq!(at, [order_of(account)[0]], "account {account}");
        answered(&request);
    }
    // All keys of a request go to one host, that of the first by name.
    for (a, b) in [(10, 20), (20, 10), (3, 25), (25, 3)] {
        let request = held(&stage.worker, Request::new("POST", &format!("/pair/{a}/{b}")));
        let first = if a.to_string() < b.to_string() { a } else { b };
        assert_eq!(stage.hosts[order_of(first)[0]].holding().len(), 1);
        answered(&request);
    }
    assert_eq!(stage.metric("failovers"), 0);
    assert_eq!(stage.metric("streams_opened"), 3);
    stage.is_clean();
}

#[test]
fn a_dead_hosts_waiters_go_on_at_the_next_with_what_is_left_of_their_wait() {
    let stage = Stage::new(&[TRANSFER]);
    stage.policy(Policy::Script);
    let account = account([0, 1, 2]);
    let waiters: Vec<_> = (0..3).map(|_| stage.worker.request(transfer(account))).collect();
    stage.advance(2_000);
    stage.hosts[0].go_down();
    stage.advance(300);
    let acquires = stage.hosts[1].acquires();
    assert_eq!(acquires.len(), 3);
    assert!(acquires.iter().all(|acquire| (2_600..=3_000).contains(&acquire.wait_ms)), "{acquires:?}");
    // Who comes now pays nothing for the discovery.
    let late = stage.worker.request(transfer(account));
    assert_eq!(stage.hosts[1].acquires().len(), 4);
    stage.hosts[1].grant_all();
    waiters.iter().chain([&late]).for_each(answered);
    assert_eq!(stage.metric("failovers"), 4);
    assert_eq!((stage.logged(0, "is away"), stage.logged(1, "is away")), (1, 0), "{:#?}", stage.worker.log());
    // The old host comes back with what it had, and is told that nobody wants it any more.
    stage.hosts[0].come_up();
    stage.advance(3_000);
    stage.is_clean();
}

#[test]
fn a_draining_hosts_waiters_move_at_once_and_its_holds_run_out() {
    let stage = Stage::new(&[TRANSFER]);
    let (one, other) = (account([0, 1, 2]), account([0, 2, 1]));
    let holder = held(&stage.worker, transfer(one));
    let there = held(&stage.worker, transfer(account([1, 0, 2])));
    stage.policy(Policy::Script);
    let waiter = stage.worker.request(transfer(one));
    let third = stage.worker.request(transfer(other));
    stage.hosts[0].go_away();
    assert_eq!(stage.hosts[1].waiting().len(), 1, "there is a session already: at once");
    stage.advance(200);
    assert_eq!(stage.hosts[2].waiting().len(), 1, "each key has its own next host");
    assert_eq!((stage.hosts[0].waiting(), stage.hosts[0].cancels().len()), (vec![], 2));
    stage.hosts.iter().for_each(ModelHost::grant_all);
    [&waiter, &third, &there].into_iter().for_each(answered);
    // The hold is kept up for as long as it takes.
    stage.advance(10_000);
    assert!(!holder.is_over());
    answered(&holder);
    assert_eq!(stage.hosts[0].releases().last().map(|(_, ending)| *ending), Some(Ending::Clean));
    assert_eq!(stage.logged(0, "goes away"), 1);
    stage.is_clean();
}

/// The old host granted before it heard that the waiter is gone.
#[test]
fn a_late_grant_of_the_old_host_is_given_back() {
    let stage = Stage::new(&[TRANSFER]);
    stage.policy(Policy::Script);
    let account = account([0, 1, 2]);
    // Silent for so long that its waiters move; its session lives on.
    stage.hosts[0].times(30_000 * MS, 1_000 * MS, 29_000 * MS);
    let request = stage.worker.request(transfer(account));
    let id = stage.hosts[0].waiting()[0];
    stage.hosts[0].freeze();
    stage.advance(4_000);
    let moved = stage.hosts[1].waiting();
    assert_eq!(moved.len(), 1);
    stage.hosts[0].grant(id);
    stage.hosts[0].thaw();
    stage.advance(500);
    assert_eq!(request.upstream(), None, "the grant is not acted on");
    assert!(stage.hosts[0].holding().is_empty(), "the hold was given back");
    stage.hosts[1].grant(moved[0]);
    answered(&request);
    stage.is_clean();
}

#[test]
fn a_host_that_comes_back_is_used_again_when_it_has_been_steady() {
    let stage = Stage::new(&[TRANSFER]);
    stage.policy(Policy::Script);
    let account = account([0, 1, 2]);
    let ask = |stage: &Stage| stage.worker.request(transfer(account));
    let first = ask(&stage);
    stage.hosts[0].go_down();
    stage.advance(500);
    stage.hosts[0].come_up();
    stage.hosts[0].clear();
    // It is greeted within moments, but gets nothing yet.
    stage.advance(1_000);
    let second = ask(&stage);
    assert!(!stage.hosts[0].hellos().is_empty() && stage.hosts[0].acquires().is_empty());
    assert_eq!(stage.hosts[1].waiting().len(), 2);
    stage.advance(2_500);
    let third = ask(&stage);
    assert_eq!((stage.hosts[0].waiting().len(), stage.hosts[1].waiting().len()), (1, 2), "nobody is dragged back");
    assert_eq!((stage.logged(0, "is away"), stage.logged(0, "is back")), (1, 1));
    stage.hosts.iter().for_each(ModelHost::grant_all);
    [first, second, third].iter().for_each(answered);
    stage.is_clean();
}

#[test]
fn a_flapping_host_is_trusted_less_each_time() {
    let stage = Stage::new(&["POST /accounts/{id}/transfer key=account:{id} wait=10m"]);
    let account = account([0, 1, 2]);
    for _ in 0..20 {
        answered(&held(&stage.worker, transfer(account)));
        stage.hosts[0].go_down();
        stage.advance(1_000);
        stage.hosts[0].restart();
        stage.advance(9_000);
    }
    let returns = stage.logged(0, "is back");
    assert!((2..=4).contains(&returns), "{returns} returns in 200 s");
    stage.is_clean();
}

#[test]
fn reentrant_requests_find_the_host_that_granted() {
    const REENTRANT: &str = "POST /accounts/{id}/transfer key=account:{id} wait=5s reentrant=on";
    let stage = Stage::new(&[REENTRANT]);
    stage.policy(Policy::Lock);
    let holder_of = |request: &InFlight| {
        let headers = request.upstream().expect("held");
        headers.text("x-turnstile-holder").expect("a secret")
    };
    let outer = held(&stage.worker, transfer(account([2, 1, 0])));
    // By its key it would go to another host; and so it would by the next host in order when that one is away.
    let join = || transfer(account([0, 1, 2])).header("x-turnstile-holder", holder_of(&outer));
    let inner = held(&stage.worker, join());
    assert_eq!((stage.hosts[2].holding().len(), stage.hosts[0].holding().len()), (2, 0));
    answered(&inner);
    // Another proxy has met none of the hosts yet, and looks for the right one.
    let secret = holder_of(&outer);
    let fresh = Stage::new(&[REENTRANT]);
    fresh.policy(Policy::Lock);
    let looking = fresh.worker.request(transfer(account([0, 1, 2])).header("x-turnstile-holder", secret));
    fresh.advance(500);
    assert!(fresh.hosts.iter().all(|host| host.acquires().len() == 1), "each was asked once");
    let reply = problem(looking.local_reply());
    assert_eq!((reply.status(), problem_type(&reply).as_str()), (409, "no-such-hold"), "its hosts are others");
    answered(&outer);
    stage.is_clean();
    fresh.is_clean();
}

#[test]
fn when_all_are_away_the_rule_decides() {
    let rules = [TRANSFER, "POST /open/{id} key=account:{id} on_host_unavailable=allow"];
    let stage = Stage::of(&setup(&rules, &NAMES).hosts_down());
    for round in 0..3 {
        let denied = stage.worker.request(transfer(1));
        let allowed = stage.worker.request(Request::new("POST", "/open/1"));
        if round == 0 {
            stage.advance(500);
        }
        assert_eq!(problem_type(&problem(denied.local_reply())), "host-unavailable");
        assert!(allowed.upstream().is_some(), "{:?}", allowed.outcome());
        allowed.respond(Response::new(200, "done"));
    }
    // One of them is enough.
    stage.hosts[1].come_up();
    stage.advance(3_000);
    for account in 0..6 {
        answered(&held(&stage.worker, transfer(account)));
    }
    stage.is_clean();
}

#[test]
fn requests_are_served_while_one_host_is_left() {
    let stage = Stage::new(&[TRANSFER]);
    stage.hosts[0].freeze();
    stage.hosts[1].go_down();
    let requests: Vec<_> = (0..12).map(|account| stage.worker.request(transfer(account))).collect();
    stage.advance(1_500);
    requests.iter().for_each(answered);
    // And from now on at once.
    for account in 0..12 {
        answered(&held(&stage.worker, transfer(account)));
    }
    stage.hosts[0].thaw();
    stage.hosts[1].come_up();
    stage.worker.advance(Duration::from_secs(5));
    stage.is_clean();
}

/// A name that is not among the proxy's clusters.
#[test]
fn a_cluster_that_the_proxy_does_not_know_is_a_host_that_is_away() {
    let worker = Worker::start(&plugin_wasm(), &setup(&[TRANSFER], &NAMES[1..]));
    let request = worker.request(transfer(account([0, 1, 2])));
    worker.advance(100 * MS);
    answered(&request);
    worker.advance(10_000 * MS);
    let told = worker.log().iter().filter(|line| line.text.contains(NAMES[0])).count();
    // Among the clusters at the start, then that there is no stream, then that its host is away.
    assert_eq!(told, 3, "{:#?}", worker.log());
    worker.check();
}
