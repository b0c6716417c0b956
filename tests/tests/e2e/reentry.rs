//! Services that call back: with the holder secret they get into the hold that they work under, without it they do not.

use serde_json::json;
use turnstile_protocol::headers;
use turnstile_tests::envoy::Envoy;
use turnstile_tests::host::{Host, HostConfig};
use turnstile_tests::http::{Answer, Ask};
use turnstile_tests::upstream::{Execution, Upstream};
use turnstile_tests::wait::{PATIENCE, until};
use turnstile_tests::world::{World, bootstrap, configuration};

const RULES: &[&str] = &[
    "POST /accounts/{id}/outer key=account:{id} wait=60s reentrant=on lock_delay=0",
    "POST /accounts/{id}/inner key=account:{id} wait=60s reentrant=on lock_delay=0",
    "POST /accounts/{id}/audited key=account:{id},audit:{id} wait=60s reentrant=on",
    "POST /accounts/{id}/shut key=account:{id} wait=0",
    "POST /accounts/{id}/read key=account:{id} mode=shared wait=60s reentrant=on",
];

/// A request to the first account, upon which the service posts to another of its paths.
fn calling(path: &str, inner: &str) -> Ask {
    Ask::post(&format!("/accounts/1/{path}")).behave(&format!("call=/accounts/1/{inner}"))
}

fn secret(execution: &Execution) -> &str {
    execution.headers[headers::HOLDER].to_str().unwrap()
}

fn assert_not_joined(answer: &Answer) {
    assert_eq!(answer.status, 409, "{answer:?}");
    assert_eq!(answer.json()["type"], "urn:turnstile:problem:no-such-hold");
}

/// Breaks if a service cannot call itself under its own lock, or if such a call gets anything but that very lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_passes_the_secret_on_calls_back_under_its_own_lock() {
    let world = World::start(RULES).await;
    let mut secrets = std::collections::BTreeSet::new();
    for (path, keys) in [("inner", 1), ("audited", 2), ("read", 1)] {
        world.expect_ok(calling("outer", path)).await;
        let executions = world.upstream.executions();
        let [.., outer, inner] = executions.as_slice() else { panic!("{executions:?}") };
        assert!(outer.path.ends_with("/outer") && inner.path.ends_with(path), "{executions:?}");
        assert!(inner.end.is_some() && inner.end <= outer.end, "the one within the other");
        assert_eq!(secret(outer), secret(inner), "one hold, one secret");
        assert_eq!((outer.locks()[0], outer.locks().len()), (inner.locks()[0], 1), "one hold, one token");
        assert_eq!(inner.locks().len(), keys);
        secrets.insert(secret(outer).to_owned());
    }
    assert_eq!(secrets.len(), 3, "every hold has a secret of its own");
}

/// Breaks if the header opens what a rule has not opened, or more than the hold has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_opens_no_more_than_it_should() {
    let world = World::start(RULES).await;
    let answer = calling("outer", "shut").send(world.proxy()).await.unwrap();
    assert_eq!(answer.status, 423, "a rule that is not re-entrant: {answer:?}");
    let answer = calling("read", "inner").send(world.proxy()).await.unwrap();
    assert_eq!(answer.status, 409, "a reader that would write: {answer:?}");
    for path in ["/accounts/1/shut", "/accounts/1/inner"] {
        assert_eq!(world.upstream.of_path(path).len(), 0);
    }
}

/// Breaks if a secret is worth anything before or after its hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_up_and_outdated_secrets_open_nothing() {
    let world = World::start(RULES).await;
    world.expect_ok(Ask::post("/accounts/1/outer")).await;
    let outdated = secret(&world.upstream.executions()[0]).to_owned();
    let holder = Ask::post("/accounts/1/inner").behave("never").spawn(world.proxy());
    world.upstream.began("/accounts/1/inner").await;
    // The right host, and a guess of the rest.
    let guessed = format!("{}{}", &outdated[..16], "0".repeat(32));
    for secret in [outdated.as_str(), &guessed, &"f".repeat(48), "", "x"] {
        let ask = Ask::post("/accounts/1/outer").header(headers::HOLDER, secret);
        assert_not_joined(&ask.send(world.proxy()).await.unwrap());
    }
    assert_eq!(world.upstream.executions().len(), 2);
    holder.abort();
}

/// Breaks if the outer request's end lets others in while a request that joined still works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_lasts_until_all_that_joined_it_are_over() {
    let world = World::start(RULES).await;
    let outer = Ask::post("/accounts/1/outer").behave("never").spawn(world.proxy());
    world.upstream.began("/accounts/1/outer").await;
    let secret = secret(&world.upstream.executions()[0]).to_owned();
    let inner = Ask::post("/accounts/1/inner").header(headers::HOLDER, &secret).behave("never").spawn(world.proxy());
    world.upstream.began("/accounts/1/inner").await;
    let shut = async || Ask::post("/accounts/1/shut").send(world.proxy()).await.unwrap().status;

    outer.abort();
    world.upstream.was_abandoned("/accounts/1/outer").await;
    // The hold can be joined as long as it lasts.
    world.expect_ok(Ask::post("/accounts/1/read").header(headers::HOLDER, &secret)).await;
    assert_eq!(shut().await, 423);
    inner.abort();
    until("the hold to end", PATIENCE, async || (shut().await == 200).then_some(())).await;
    let ask = Ask::post("/accounts/1/read").header(headers::HOLDER, &secret);
    assert_not_joined(&ask.send(world.proxy()).await.unwrap());
}

/// Breaks if an operator who ends a hold by force does not end all that joined it, or if its secret outlives it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_by_force_aborts_all_that_joined() {
    let world = World::start(RULES).await;
    let outer = Ask::post("/accounts/1/outer").behave("never").spawn(world.proxy());
    world.upstream.began("/accounts/1/outer").await;
    let secret = secret(&world.upstream.executions()[0]).to_owned();
    let inner = Ask::post("/accounts/1/inner").header(headers::HOLDER, &secret).behave("never").spawn(world.proxy());
    world.upstream.began("/accounts/1/inner").await;

    let order = json!({ "key": "default/account:1", "by": "ann", "reason": "it hangs" }).to_string();
    let release = Ask::post("/v1/release").header("content-type", "application/json").body(order);
    assert_eq!(release.send(world.hosts[0].api).await.unwrap().status, 200);
    for aborted in [outer, inner] {
        let answer = aborted.await.unwrap().unwrap();
        assert_eq!((answer.status, &answer.json()["type"]), (503, &json!("urn:turnstile:problem:lock-lost")));
    }
    let ask = Ask::post("/accounts/1/inner").header(headers::HOLDER, &secret);
    assert_not_joined(&ask.send(world.proxy()).await.unwrap());
    world.expect_ok(Ask::post("/accounts/1/outer")).await;
}

/// Breaks if a request that Envoy redirects by itself is taken for one that brings the secret of its own hold, which is
/// over: it carries the headers that the upstream was sent. One that joined another hold joins it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_internal_redirect_brings_no_secret_of_its_own() {
    let (host, upstream) = (Host::start(&HostConfig::default()).await, Upstream::start().await);
    let rules = ["POST /internal/{step} key=k wait=5s reentrant=on", "POST /outer key=k wait=5s reentrant=on"];
    let mut bootstrap = bootstrap(&configuration(&rules), host.sessions, upstream.address);
    let redirects = json!({ "cluster": "app", "internal_redirect_policy": { "max_internal_redirects": 1 } });
    bootstrap.route(json!({ "match": { "prefix": "/internal/" }, "route": redirects }));
    let envoy = Envoy::start(&bootstrap, 2).await;

    // The behaviour is for both requests, so Envoy's limit of one redirect passes the second 302 on.
    let ask = Ask::post("/internal/1").behave("status=302; location=http://a/internal/2");
    for round in 1..=2 {
        let answer = ask.send(envoy.listener).await.unwrap();
        assert_eq!(answer.status, 302, "round {round}: {answer:?}");
        let executions = upstream.executions();
        let [.., first, second] = executions.as_slice() else { panic!("{executions:?}") };
        assert_eq!((first.path.as_str(), second.path.as_str()), ("/internal/1", "/internal/2"));
        assert!(first.token() < second.token(), "a lock of its own");
        assert_ne!(secret(first), secret(second));
    }

    let outer = Ask::post("/outer").behave("never").spawn(envoy.listener);
    upstream.began("/outer").await;
    let outer_execution = upstream.of_path("/outer").remove(0);
    let answer = ask.header(headers::HOLDER, secret(&outer_execution)).send(envoy.listener).await.unwrap();
    assert_eq!(answer.status, 302, "{answer:?}");
    let executions = upstream.executions();
    assert!(executions.iter().rev().take(2).all(|execution| execution.token() == outer_execution.token()));
    outer.abort();
}
