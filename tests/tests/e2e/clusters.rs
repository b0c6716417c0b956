//! Several hosts on one store, an Envoy cluster each: requests are spread over them, and fail over from one that dies.

use std::collections::BTreeSet;

use turnstile_protocol::headers;
use turnstile_tests::artifacts::plugin_wasm;
use turnstile_tests::bootstrap::Bootstrap;
use turnstile_tests::checker::judge;
use turnstile_tests::envoy::Envoy;
use turnstile_tests::host::{Host, HostConfig};
use turnstile_tests::http::Ask;
use turnstile_tests::load::Load;
use turnstile_tests::preference;
use turnstile_tests::upstream::Upstream;
use turnstile_tests::wait::{PATIENCE, until};
use turnstile_tests::world::{Plan, World, host_cluster};

const RULES: &[&str] = &[
    "POST /jobs/{id} key=work:{id} wait=60s hold=30s lock_delay=500ms",
    "POST /family/{id} key=family:{id} wait=5s reentrant=on",
];
const KEYS: usize = 8;
/// More than any load below comes to: it runs until it is stopped.
const ENDLESS: usize = 1_000_000;

fn work(number: usize) -> Ask {
    Ask::post(&format!("/jobs/{}", number % KEYS)).behave("delay=2")
}

async fn start() -> World {
    World::start_as(Plan { hosts: 2, envoys: 2, ..Plan::of(RULES) }).await
}

async fn failovers(world: &World) -> u64 {
    let mut sum = 0;
    for envoy in &world.envoys {
        sum += envoy.stat("wasmcustom.turnstile.failovers").await.unwrap_or(0);
    }
    sum
}

/// Breaks if a request goes to another host than the documented hash says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_has_its_host() {
    let world = start().await;
    let clusters = [host_cluster(0), host_cluster(1)];
    let mut used = BTreeSet::new();
    for number in 0..KEYS {
        let path = format!("/jobs/{number}");
        let holder = Ask::post(&path).behave("never").spawn(world.proxies()[number % 2]);
        world.upstream.began(&path).await;
        let key = format!("default/work:{number}");
        let order = preference::order(&clusters, &key);
        let look = Ask::get(&format!("/v1/locks/{key}"));
        let tracked: [u16; 2] = [
            look.send(world.hosts[order[0]].api).await.unwrap().status,
            look.send(world.hosts[order[1]].api).await.unwrap().status,
        ];
        assert_eq!(tracked, [200, 404], "{key} is known at the host that it prefers, and there only");
        used.insert(order[0]);
        holder.abort();
    }
    assert_eq!(used.len(), 2, "both hosts are used");
    assert_eq!(failovers(&world).await, 0);
}

/// Breaks if the filter cannot tell by a secret which host gave it: another one would know no such hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_a_hold_finds_its_host() {
    let world = start().await;
    let clusters = [host_cluster(0), host_cluster(1)];
    let of_host = |host: usize| {
        let prefers = |id: &usize| preference::order(&clusters, &format!("default/family:{id}"))[0] == host;
        (0..).find(prefers).expect("some key does")
    };
    let (outer, inner) = (format!("/family/{}", of_host(0)), format!("/family/{}", of_host(1)));
    let holder = Ask::post(&outer).behave("never").spawn(world.proxy());
    world.upstream.began(&outer).await;
    let secret = world.upstream.executions()[0].headers[headers::HOLDER].to_str().unwrap().to_owned();
    // The other proxy has met neither host yet. The inner request's own key is at home at the wrong one.
    for proxy in [world.proxies()[1], world.proxies()[0]] {
        let answer = Ask::post(&inner).header(headers::HOLDER, &secret).send(proxy).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let joined = world.upstream.of_path(&inner);
    assert!(joined.iter().all(|execution| execution.headers[headers::HOLDER] == *secret), "it is the same hold");
    holder.abort();
}

/// Breaks if the example of the manual is no configuration for Envoy and the filter, or does not lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_manuals_example_works() {
    let first = Host::start(&HostConfig::default()).await;
    let second = Host::start_beside(&first, &HostConfig::default()).await;
    let upstream = Upstream::start().await;
    let (mut bootstrap, names) = Bootstrap::as_the_manual_says();
    let [a, b] = names.as_slice() else { panic!("the manual has two hosts, not {names:?}") };
    bootstrap.place_all(&[(a, first.sessions), (b, second.sessions)], upstream.address, &plugin_wasm());
    let envoy = Envoy::start(&bootstrap, 2).await;
    let requests = 400;
    let transfer = |number: usize| Ask::post(&format!("/accounts/{}/transfer", number % 8));
    Load::start(&[envoy.listener], 16, requests, transfer).finish().await.assert_all_ok(requests);
    judge(&upstream.executions()).assert_undisturbed();
    for name in &names {
        let streams = envoy.stat(&format!("cluster.{name}.upstream_rq_total")).await;
        assert!(streams > Some(0), "{name} was not used");
    }
}

/// Breaks if a dead host's keys are not served by the other one, if the two hosts let requests meet, or if anybody who
/// had wait left is turned away, but for those who held a lock of the dead host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_hosts_keys_are_served_by_the_other() {
    let mut world = start().await;
    let load = Load::start(&world.proxies(), 24, ENDLESS, work);
    load.reached(400).await;
    world.hosts[0].process.kill();
    let have = world.upstream.executions().len();
    until("every key to go on", PATIENCE, async || {
        let executions = world.upstream.executions();
        let keys: BTreeSet<_> = executions.iter().skip(have + 50).filter_map(|execution| execution.key()).collect();
        (keys.len() == KEYS).then_some(())
    })
    .await;
    until("the failovers to be counted", PATIENCE, async || (failovers(&world).await > 0).then_some(())).await;
    let outcome = load.stop().await;
    assert!(outcome.faults.is_empty(), "nobody is left without an answer: {:?}", outcome.faults);
    let lost = outcome.statuses.iter().filter(|(status, _)| **status != 200).map(|(_, count)| count).sum::<usize>();
    assert!(lost <= KEYS, "only holders are aborted: {:?}", outcome.statuses);
    judge(&world.upstream.executions()).assert_undisturbed();
}
