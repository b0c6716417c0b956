//! Several hosts on one store, an Envoy cluster each: requests are spread over them, and fail over from one that dies.

use std::collections::BTreeSet;

use turnstile_tests::checker::judge;
use turnstile_tests::http::Ask;
use turnstile_tests::load::Load;
use turnstile_tests::preference;
use turnstile_tests::wait::{PATIENCE, until};
use turnstile_tests::world::{Plan, World, host_cluster};

const RULES: &[&str] = &["POST /jobs/{id} key=work:{id} wait=60s hold=30s lock_delay=500ms"];
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
