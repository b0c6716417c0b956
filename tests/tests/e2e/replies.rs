//! What clients are told when they do not get through, and what happens without a host.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use turnstile_tests::envoy::Envoy;
use turnstile_tests::host::HostConfig;
use turnstile_tests::http::{Answer, Ask, Connection};
use turnstile_tests::session_client::{Session, Want};
use turnstile_tests::upstream::Upstream;
use turnstile_tests::wait::PATIENCE;
use turnstile_tests::world::{Plan, World, bootstrap, configuration};

const RULES: &[&str] = &[
    "POST /try/{id} key=k:{id} wait=0s",
    "POST /wait/{id} key=k:{id} wait=300ms",
    "POST /long/{id} key=k:{id} wait=60s",
];

async fn hold(session: &Session, key: &str) {
    let want = Want { key, wait: PATIENCE, lock_delay: Duration::ZERO };
    session.acquire(want).await.unwrap_or_else(|reject| panic!("{key}: {reject:?}"));
}

fn assert_problem(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem = answer.json();
    assert_eq!(problem["status"], status);
    assert!(problem["type"].is_string() && problem["title"].is_string(), "{problem}");
}

fn assert_retry_after(answer: &Answer) {
    let seconds: u32 = answer.header("retry-after").parse().unwrap_or_else(|_| panic!("no Retry-After: {answer:?}"));
    assert!((1..=600).contains(&seconds), "{seconds} s");
}

/// Breaks if a conflict is told as an error of the server, a wait that is over as a conflict, or if the upstream sees
/// any of these requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_try_conflicts_and_a_wait_ends() {
    let world = World::start(RULES).await;
    let session = world.session().await;
    hold(&session, "default/k:1").await;

    assert_problem(&Ask::post("/try/1").send(world.proxy()).await.unwrap(), 423);

    let answer = Ask::post("/wait/1").send(world.proxy()).await.unwrap();
    assert_problem(&answer, 503);
    assert_retry_after(&answer);
    assert!(answer.took >= Duration::from_millis(290), "waited only {:?}", answer.took);

    let mut http2 = Connection::open_http2(world.proxy()).await.unwrap();
    let grpc = Ask::post("/try/1").header("content-type", "application/grpc").header("te", "trailers");
    let answer = http2.send(&grpc).await.unwrap();
    assert_eq!((answer.status, answer.header("grpc-status")), (200, "10"), "gRPC clients read ABORTED: {answer:?}");

    // Some upstreams take `post` for POST, so it must not be a way around the lock.
    let answer = http2.send(&Ask::new("post", "/try/1")).await.unwrap();
    assert_problem(&answer, 423);

    assert!(world.upstream.executions().is_empty());
    world.expect_ok(Ask::post("/try/2")).await;
}

/// Breaks if the queue of a key is without bound, or a full queue is told late (I7).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_turns_away_at_once() {
    let host = HostConfig { more: "[limits]\nwaiters_per_key = 3".to_owned(), ..HostConfig::default() };
    let world = World::start_as(Plan { host, ..Plan::of(RULES) }).await;
    let session = world.session().await;
    hold(&session, "default/k:1").await;
    let waiters: Vec<_> = (0..3).map(|_| Ask::post("/long/1").spawn(world.proxy())).collect();
    turnstile_tests::wait::until("three to wait", PATIENCE, async || {
        (session.queue_length("default/k:1").await == 3).then_some(())
    })
    .await;
    let answer = Ask::post("/long/1").send(world.proxy()).await.unwrap();
    assert_problem(&answer, 503);
    assert_retry_after(&answer);
    assert!(answer.took < Duration::from_secs(10), "it was to wait 60 s, but not in vain: {:?}", answer.took);
    for waiter in waiters {
        assert!(!waiter.is_finished(), "those who wait go on waiting");
        waiter.abort();
    }
}

/// Breaks if a guarded request gets through without a host (deny), or is kept from it (allow), I8.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_host_the_rule_decides() {
    let upstream = Upstream::start().await;
    let nobody = SocketAddr::from(([127, 0, 0, 1], turnstile_tests::ports::free_port()));
    let rules = ["POST /deny/{id} key=k:{id} wait=2s", "POST /allow/{id} key=k:{id} wait=2s on_host_unavailable=allow"];
    let envoy = Envoy::start(&bootstrap(&configuration(&rules), nobody, upstream.address), 2).await;

    let answer = Ask::post("/deny/1").send(envoy.listener).await.unwrap();
    assert_problem(&answer, 503);
    assert_retry_after(&answer);
    assert!(upstream.executions().is_empty(), "deny is deny");

    let answer = Ask::post("/allow/1").header("x-turnstile-token", "7").send(envoy.listener).await.unwrap();
    assert_eq!(answer.status, 200);
    let seen = upstream.executions().remove(0);
    assert_eq!((seen.key(), seen.token()), (None, None), "no lock, no token");
    assert_eq!(Ask::get("/unguarded").send(envoy.listener).await.unwrap().status, 200);
}

/// Breaks if waiting uploads pile up in the proxy's memory, or are refused for their size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_uploads_wait_outside() {
    const UPLOAD: usize = 60 << 20;
    let world = Arc::new(World::start(RULES).await);
    let session = world.session().await;
    let want = Want { key: "default/k:1", wait: PATIENCE, lock_delay: Duration::ZERO };
    let held = session.acquire(want).await.unwrap();
    world.expect_ok(Ask::post("/try/2")).await;
    let before = world.envoys[0].process.resident_bytes();
    let ask = Ask::post("/long/1").body(vec![b'u'; UPLOAD]);
    let uploads: Vec<_> = (0..3).map(|_| ask.spawn(world.proxy())).collect();
    turnstile_tests::wait::until("three to wait", PATIENCE, async || {
        (session.queue_length("default/k:1").await == 3).then_some(())
    })
    .await;
    // What does not fit into the buffers between client and proxy stays with the client.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let grown = world.envoys[0].process.resident_bytes().saturating_sub(before);
    assert!(grown < UPLOAD as u64 / 2, "three waiting uploads of {UPLOAD} bytes took {grown} bytes");
    session.release(&held, turnstile_protocol::v1::Ending::Clean).await;
    for upload in uploads {
        assert_eq!(upload.await.unwrap().unwrap().status, 200);
    }
    let executions = world.upstream.executions();
    let received: Vec<u64> = executions.iter().map(|execution| execution.received).collect();
    assert_eq!(received, [0, UPLOAD as u64, UPLOAD as u64, UPLOAD as u64]);
    turnstile_tests::checker::judge(&executions).assert_undisturbed();
}

/// Breaks if the object form of a rule is read differently from the line form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_as_objects_in_a_namespace() {
    let upstream = Upstream::start().await;
    let host = turnstile_tests::host::Host::start(&HostConfig::default()).await;
    let configuration = json!({ "cluster": "turnstile_host", "namespace": "bank", "rules": [{
        "name": "transfer",
        "match": { "host": "pay.example.com", "methods": ["POST"], "path": "/accounts/{id}/transfer" },
        "key": "account:{id}", "wait": "5s", "hold": "60s", "lock_delay": "15s",
        "on_lost": "abort", "on_host_unavailable": "deny" }] });
    let envoy = Envoy::start(&bootstrap(&configuration, host.sessions, upstream.address), 1).await;
    for (method, host, guarded) in [
        ("POST", "pay.example.com", true),
        ("POST", "PAY.example.com:8443", true),
        ("POST", "pay.example.com.", true),
        ("POST", "shop.example.com", false),
        ("GET", "pay.example.com", false),
    ] {
        let path = format!("/accounts/7/transfer?{method}-{host}");
        let answer = Ask::new(method, &path).header("host", host).send(envoy.listener).await.unwrap();
        assert_eq!(answer.status, 200);
        let seen = upstream.of_path(&path).remove(0);
        assert_eq!(seen.key(), guarded.then_some("bank/account:7"), "{method} {host}");
    }
}
