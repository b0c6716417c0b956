//! One at a time, across workers and proxies, under load: with thousands of requests nobody meets anybody.

use std::time::Duration;

use turnstile_tests::checker::judge;
use turnstile_tests::http::Ask;
use turnstile_tests::load::Load;
use turnstile_tests::world::{Plan, World};

const RULES: &[&str] = &["POST /accounts/{id}/transfer key=account:{id} wait=60s"];

fn transfer(account: usize) -> Ask {
    Ask::post(&format!("/accounts/{account}/transfer"))
}

/// Breaks if two requests of a key are let in together, if a token does not grow, or if anybody is turned away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_clients_on_few_keys() {
    let world = World::start(RULES).await;
    let requests = 3_000;
    let load = Load::start(&world.proxies(), 64, requests, |number| transfer(number % 3));
    load.finish().await.assert_all_ok(requests);
    let verdict = judge(&world.upstream.executions());
    assert_eq!((verdict.executions, verdict.keys), (requests, 3));
    verdict.assert_undisturbed();
}

/// Breaks if keys stand in each other's way, or ownership of many of them at once goes wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_clients_on_many_keys() {
    let world = World::start(RULES).await;
    let requests = 3_000;
    let load = Load::start(&world.proxies(), 64, requests, |number| transfer(number * 7_919 % 500));
    load.finish().await.assert_all_ok(requests);
    let verdict = judge(&world.upstream.executions());
    assert_eq!((verdict.executions, verdict.keys), (requests, 500));
    verdict.assert_undisturbed();
}

/// Breaks if the lock holds within one proxy only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_proxies_on_one_host() {
    let world = World::start_as(Plan { envoys: 3, ..Plan::of(RULES) }).await;
    let requests = 1_500;
    let load = Load::start(&world.proxies(), 48, requests, |number| transfer(number % 4).behave("delay=1"));
    load.finish().await.assert_all_ok(requests);
    let verdict = judge(&world.upstream.executions());
    assert_eq!((verdict.executions, verdict.keys), (requests, 4));
    verdict.assert_undisturbed();
}

/// Breaks if newcomers are let in before those who wait (I4). Sixteen clients share one key, so each waits for the
/// fifteen others; a starved one would wait for much longer than the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_starves() {
    let world = World::start(RULES).await;
    let requests = 800;
    let load = Load::start(&world.proxies(), 16, requests, |_| transfer(1).behave("delay=2"));
    let outcome = load.finish().await;
    outcome.assert_all_ok(requests);
    let verdict = judge(&world.upstream.executions());
    assert_eq!((verdict.executions, verdict.keys), (requests, 1));
    verdict.assert_undisturbed();
    let (median, worst) = (outcome.quantile(0.5), outcome.quantile(1.0));
    assert!(worst < median * 6 + Duration::from_millis(500), "median {median:?}, worst {worst:?}");
}
