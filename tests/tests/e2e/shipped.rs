//! The files as they are shipped: the bootstrap runs, and its settings leave no way around a lock by spelling.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use turnstile_tests::artifacts;
use turnstile_tests::bootstrap::Bootstrap;
use turnstile_tests::envoy::Envoy;
use turnstile_tests::host::{Host, HostConfig};
use turnstile_tests::http::{Ask, Connection};
use turnstile_tests::session_client::{Session, Want};
use turnstile_tests::upstream::Upstream;
use turnstile_tests::world::{World, bootstrap};

/// Breaks if the shipped file does not start, or its rule does not lock: only addresses and the place of the plugin
/// are put in (and each of those places must be in the file).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bootstrap_works_as_shipped() {
    let (host, upstream) = (Host::start(&HostConfig::default()).await, Upstream::start().await);
    let mut bootstrap = Bootstrap::shipped();
    bootstrap.place(host.sessions, upstream.address, &artifacts::plugin_wasm());
    let envoy = Envoy::start(&bootstrap, 2).await;

    assert_eq!(Ask::get("/healthz").send(envoy.listener).await.unwrap().status, 200);
    assert_eq!(Ask::post("/accounts/42/transfer").send(envoy.listener).await.unwrap().status, 200);

    let executions = upstream.executions();
    assert_eq!((executions[0].key(), executions[0].token()), (None, None), "an unguarded request");
    assert_eq!(executions[1].key(), Some("default/account:42"));
    assert!(executions[1].token().is_some(), "a guarded request carries a fencing token");
}

/// Breaks if a faulty rule is loaded silently, and with it nothing is guarded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_refuses_rules_that_are_not_understood() {
    let nowhere = "127.0.0.1:1".parse().unwrap();
    for rule in [json!("POST /accounts/{id} key=account:{ID}"), json!({ "match": {}, "kee": "a" })] {
        let configuration = json!({ "cluster": "turnstile_host", "rules": [rule] });
        let output = Envoy::refuse(&bootstrap(&configuration, nowhere, nowhere)).await;
        assert!(output.contains("rules[0]") || output.contains("rule 0"), "the place of the fault is told: {output}");
    }
}

const RULES: &[&str] = &["* /accounts/{id}/transfer key=account:{id} wait=0s", "* /by-query key=q:{query.id} wait=0s"];

/// The lock of account 42 is held by somebody else: nothing that an application may take for its transfer passes.
const SPELLINGS: &[&str] = &[
    "/accounts/42/transfer",
    "/accounts/42/transfer?x=1",
    "/accounts/42/transfer/",
    "//accounts/42/transfer",
    "/accounts//42///transfer",
    "/accounts/./42/transfer",
    "/accounts/41/../42/transfer",
    "/x/../accounts/42/transfer",
    "/accounts/%34%32/transfer",
    "/%61ccounts/42/transfer",
    "/accounts/42/%74ransfer",
    "/accounts/%2e/42/transfer",
    "/accounts/41/%2e%2e/42/transfer",
    "/accounts/41/.%2E/42/transfer",
    "/accounts%2F42%2Ftransfer",
    "/accounts%2f42/transfer",
    "/accounts/42%2Ftransfer",
    "/accounts%5C42%5Ctransfer",
    "/accounts\\42\\transfer",
    "/accounts/42/transfer;v=1",
    "/accounts;v=1/42/transfer",
    "/accounts/42;v=1/transfer",
    "/accounts/42/transfer%3Fx",
    "/accounts/42/transfer%00",
    "/accounts/42/transfer#x",
    "/accounts/%2534%2532/transfer",
    "/accounts/42/transfer%20",
];

/// Breaks if one more spelling of a guarded path slips past the lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_spelling_of_a_path_escapes_its_lock() {
    let world = World::start(RULES).await;
    let session = world.session().await;
    hold(&session, "default/account:42").await;
    hold(&session, "default/account:42;v=1").await;
    let mut passed = Vec::new();
    for spelling in SPELLINGS {
        let status = raw_status(&world, "POST", spelling, "a").await;
        if !matches!(status, 423 | 400) {
            passed.push(format!("{spelling}: {status}"));
        }
    }
    for host in ["a.", "A:1", "a:10000"] {
        let status = raw_status(&world, "POST", "/accounts/42/transfer", host).await;
        assert_eq!(status, 423, "with the host {host}");
    }
    let seen = world.upstream.executions();
    assert!(passed.is_empty() && seen.is_empty(), "{passed:#?}\nthe upstream saw {seen:#?}");
    // The same by an absolute target, and by HTTP/2.
    let target = format!("http://{}/accounts/42/transfer", world.proxy());
    assert_eq!(raw_status(&world, "POST", &target, "a").await, 423);
    let mut http2 = Connection::open_http2(world.proxy()).await.unwrap();
    for spelling in ["/accounts/42/transfer", "/accounts/./42//transfer", "/accounts/%34%32/transfer"] {
        assert_eq!(http2.send(&Ask::post(spelling)).await.unwrap().status, 423, "{spelling} over HTTP/2");
    }
    // And what is another account's is not refused.
    world.expect_ok(Ask::post("/accounts/43/transfer")).await;
}

/// Breaks if a request can choose between two locks by naming the key twice, or have none by leaving it out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_not_beyond_doubt_is_refused() {
    let world = World::start(RULES).await;
    for query in ["", "?", "?id=", "?id=1&id=2", "?id=1&%69d=2", "?id=%2", "?ID=1"] {
        let status = raw_status(&world, "GET", &format!("/by-query{query}"), "a").await;
        assert_eq!(status, 400, "/by-query{query}");
    }
    assert!(world.upstream.executions().is_empty());
    world.expect_ok(Ask::get("/by-query?id=1&x=2")).await;
    assert_eq!(world.upstream.executions()[0].key(), Some("default/q:1"));
}

/// Breaks if a client can pass off a fencing token, a key or a holder secret as the filter's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_ours_are_stripped_from_clients() {
    let world = World::start(RULES).await;
    for path in ["/accounts/1/transfer", "/unguarded"] {
        let mut ask = Ask::post(path);
        for name in ["x-turnstile-token", "X-Turnstile-Token", "x-turnstile-key", "x-turnstile-holder"] {
            ask = ask.header(name, "9223372036854775807");
        }
        for name in ["x_turnstile_token", "X_Turnstile_Key", "x-turnstile_holder"] {
            ask = ask.header(name, "9223372036854775807");
        }
        world.expect_ok(ask).await;
        let seen = world.upstream.of_path(path).remove(0);
        let spoofed: Vec<_> =
            seen.headers.iter().filter(|(_, value)| value.as_bytes().starts_with(b"92233720368")).collect();
        assert!(spoofed.is_empty(), "{path}: {spoofed:?}");
        assert_eq!(seen.key().is_some(), path.starts_with("/accounts"), "{path}");
        assert_eq!(seen.token().is_some(), path.starts_with("/accounts"), "{path}");
    }
}

/// Breaks if one byte of a client kills the filter's sandbox (and every lock that it holds).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_not_text_do_no_harm() {
    let world = World::start(RULES).await;
    let sandboxes =
        async || world.envoys[0].stat("wasm.envoy.wasm.runtime.v8.created").await.expect("a counter of Envoy");
    let before = sandboxes().await;
    let mut held = Connection::open(world.proxy()).await.unwrap();
    let holder = tokio::spawn(async move { held.send(&Ask::post("/accounts/1/transfer").behave("delay=500")).await });
    world.upstream.began("/accounts/1/transfer").await;
    for name in ["user-agent", "x-anything", "x-request-id", "cookie", "x-turnstile-token", "content-type"] {
        // A key of its own for each: a try may come to the host before the release of the request before it does.
        let ask = Ask::post(&format!("/accounts/{name}/transfer")).header_bytes(name, b"\xff\xfe\x80 \xc3(");
        world.expect_ok(ask).await;
    }
    let guarded: Vec<_> = world.upstream.executions().split_off(1);
    assert!(guarded.len() == 6 && guarded.iter().all(|execution| execution.token().is_some()), "{guarded:#?}");
    let status = raw_status(&world, "POST", "/accounts/%ff%fe/transfer", "a").await;
    assert!(matches!(status, 200 | 400), "{status}");
    let raw = b"POST /accounts/\xff\xfe/transfer HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
    let status = status_of(&world, raw).await;
    assert!(matches!(status, 200 | 400), "{status}");
    assert_eq!(holder.await.unwrap().unwrap().status, 200, "the filter lives on");
    assert_eq!(sandboxes().await, before, "a sandbox died and was renewed");
}

async fn hold(session: &Session, key: &str) {
    let want = Want { key, wait: Duration::from_secs(5), lock_delay: Duration::ZERO };
    session.acquire(want).await.unwrap_or_else(|reject| panic!("{key}: {reject:?}"));
}

async fn raw_status(world: &World, method: &str, target: &str, host: &str) -> u16 {
    let request =
        format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    status_of(world, request.as_bytes()).await
}

/// Sends bytes that no decent client would, and returns the status of the answer.
async fn status_of(world: &World, request: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(world.proxy()).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    let head = std::str::from_utf8(&head).unwrap();
    head.strip_prefix("HTTP/1.1 ").and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{head:?}"))
}

/// Breaks if a name in the shipped file and the name that the filter's configuration uses drift apart.
#[test]
fn the_shipped_configuration_names_what_the_shipped_bootstrap_has() {
    let file: Value = serde_json::from_str(&Bootstrap::shipped().to_json()).unwrap();
    let text = serde_json::to_string(&file).unwrap();
    assert!(!text.contains("fail_open") && !text.contains("FAIL_OPEN"), "a lock that fails open is none");
    assert!(!text.contains("allow_on_headers_stop_iteration"), "requests would be sent on before their grant");
    let clusters = file["static_resources"]["clusters"].as_array().unwrap();
    assert!(clusters.iter().any(|cluster| cluster["name"] == "turnstile_host"));
}
