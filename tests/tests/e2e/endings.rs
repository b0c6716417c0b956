//! How a request ends decides how its hold ends: every way that a real Envoy has, against a host that writes down
//! each word of the filter. A hold ends exactly once: clean only if the upstream is certainly done, unsent only if it
//! certainly never began.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use turnstile_protocol::v1::{Acquire, Ending, LostReason, RejectReason};
use turnstile_tests::envoy::Envoy;
use turnstile_tests::http::{Ask, Connection};
use turnstile_tests::scripted_host::{Answer, Ended, ScriptedHost, VALID};
use turnstile_tests::upstream::{CLOSE, Upstream, fixed_answer};
use turnstile_tests::world::{bootstrap, configuration};

use crate::table::Table;

const CLEAN: Ended = Ended::Released(Ending::Clean);
const UNCLEAN: Ended = Ended::Released(Ending::Unclean);
const UNSENT: Ended = Ended::Released(Ending::Unsent);

const RULES: &[&str] =
    &["* /continue/{id} key=continue:{id} on_lost=continue", "* /{kind}/{id} key={kind}:{id} wait=60s"];

/// An Envoy between a scripted host and the recording upstream. A path `/a/b` has the key `default/a:b`; the host
/// answers nothing by itself for `/later/...` and rejects `/refused/...`.
struct Stage {
    envoy: Envoy,
    host: ScriptedHost,
    upstream: Upstream,
}

impl Stage {
    async fn set() -> Self {
        let expired = AtomicUsize::new(0);
        let (host, upstream) =
            (ScriptedHost::start(move |acquire| script(acquire, &expired)).await, Upstream::start().await);
        let mut bootstrap = bootstrap(&configuration(RULES), host.address, upstream.address);
        bootstrap.manager("http_protocol_options", json!({ "enable_trailers": true }));
        bootstrap.manager("upgrade_configs", json!([{ "upgrade_type": "websocket" }]));
        bootstrap.cluster("garbage", fixed_answer(b"\x16\x03\x01 no HTTP at all\r\n\r\n").await);
        bootstrap.cluster("half-an-answer", fixed_answer(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await);
        bootstrap.cluster("closed-port", "127.0.0.1:1".parse().expect("an address"));
        bootstrap.cluster("trailers", upstream.address);
        let last = bootstrap.last_cluster();
        bootstrap.add(&last, "typed_extension_protocol_options", trailers_on_http1());
        bootstrap.filter_before_router(json!({ "name": "envoy.filters.http.fault", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
            "abort": { "header_abort": {}, "percentage": { "numerator": 100 } } } }));
        for route in routes() {
            bootstrap.route(route);
        }
        Self { envoy: Envoy::start(&bootstrap, 2).await, host, upstream }
    }

    fn proxy(&self) -> SocketAddr {
        self.envoy.listener
    }

    /// The path's lock is ended so, and nothing more is said about it. The next heartbeat is proof that nothing is on
    /// its way: streams are in order.
    async fn assert_ended(&self, path: &str, expected: Ended) {
        let key = key_of(path);
        assert_eq!(self.host.was_ended(&key).await, expected);
        self.host.heartbeats_pass(2).await;
        let asked = self.host.asked(&key);
        assert_eq!(asked.len(), 1, "asked for once: {asked:#?}");
        assert_eq!(asked[0].ended.len(), 1, "ended once: {asked:#?}");
    }
}

fn key_of(path: &str) -> String {
    format!("default/{}", path.trim_start_matches('/').replacen('/', ":", 1))
}

fn script(acquire: &Acquire, expired: &AtomicUsize) -> Answer {
    match acquire.keys[0].key.as_str() {
        key if key.starts_with("default/later:") => Answer::Nothing,
        key if key.starts_with("default/rejected:") => Answer::Reject(RejectReason::WaitTimeout),
        // Out of date on arrival at first, as a grant that sat in a socket while everything stood still.
        "default/expired:a" if expired.fetch_add(1, Ordering::Relaxed) == 0 => Answer::Grant(Duration::ZERO),
        _ => Answer::Grant(VALID),
    }
}

fn trailers_on_http1() -> Value {
    json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http_protocol_options": { "enable_trailers": true } } } })
}

fn routes() -> Vec<Value> {
    let route = |prefix: &str, route: Value| json!({ "match": { "prefix": prefix }, "route": route });
    vec![
        route("/garbage/", json!({ "cluster": "garbage" })),
        route("/half/", json!({ "cluster": "half-an-answer" })),
        route("/closed/", json!({ "cluster": "closed-port" })),
        route("/trailers/", json!({ "cluster": "trailers" })),
        route("/nowhere/", json!({ "cluster_header": "x-cluster" })),
        route("/timeout/", json!({ "cluster": "app", "timeout": "0.4s" })),
        route("/idle/", json!({ "cluster": "app", "idle_timeout": "0.4s" })),
        route("/later/idle", json!({ "cluster": "app", "idle_timeout": "0.4s" })),
        route("/max/", json!({ "cluster": "app", "max_stream_duration": { "max_stream_duration": "0.4s" } })),
        route("/retry/", json!({ "cluster": "app", "retry_policy": { "retry_on": "5xx,reset", "num_retries": 1 } })),
        route("/internal/", json!({ "cluster": "app", "internal_redirect_policy": { "max_internal_redirects": 1 } })),
        json!({ "match": { "prefix": "/redirect/" }, "redirect": { "path_redirect": "/elsewhere" } }),
        json!({ "match": { "prefix": "/direct/" }, "direct_response": { "status": 200, "body": { "inline_string": "hi" } } }),
    ]
}

/// A request, what the client gets (0: a broken answer), and how the hold ends.
struct Row(&'static str, Ask, u16, Ended);

/// Breaks if an ending is judged wrongly: a lock that is passed on while the upstream works, or quarantined without
/// need, or never released, or released twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_ending_of_envoy_ends_the_hold_once_and_rightly() {
    let stage = Arc::new(Stage::set().await);
    let mut table = Table::default();
    for Row(path, ask, status, ended) in answered_rows().into_iter().chain(local_rows()).chain(doubtful_rows()) {
        let stage = Arc::clone(&stage);
        table.row(path, async move {
            let got = ask.send(stage.proxy()).await;
            let got = got.map(|answer| answer.status).unwrap_or_default();
            assert_eq!(got, status, "the status");
            stage.assert_ended(path, ended).await;
        });
    }
    table.finish().await;
}

/// The upstream answers completely: clean.
fn answered_rows() -> Vec<Row> {
    let post =
        |path: &'static str, behaviour: &str, status| Row(path, Ask::post(path).behave(behaviour), status, CLEAN);
    let upload = Ask::post("/a/upload").body(vec![b'u'; 300_000]);
    let head = Ask::new("HEAD", "/a/head").behave("body=100");
    let trailers = Ask::post("/trailers/a").header("te", "trailers").behave("trailers; body=10");
    vec![
        post("/a/plain", "", 200),
        post("/a/slow-work", "delay=300", 200),
        post("/a/large", "body=200000; parts=20", 200),
        post("/a/slow-body", "body=100; parts=4; pause=100", 200),
        post("/a/empty", "body=0", 200),
        post("/a/no-content", "status=204", 204),
        post("/a/not-modified", "status=304", 304),
        post("/a/server-error", "status=500", 500),
        // A 503 or 504 of the upstream itself is as complete an answer as any other.
        post("/a/own-503", "status=503", 503),
        post("/a/own-504", "status=504", 504),
        Row("/a/head", head, 200, CLEAN),
        Row("/a/upload", upload, 200, CLEAN),
        Row("/trailers/a", trailers, 200, CLEAN),
    ]
}

/// Envoy answers by itself and the upstream never saw the request: unsent.
fn local_rows() -> Vec<Row> {
    let fault = Ask::post("/a/fault").header("x-envoy-fault-abort-request", "418");
    let nowhere = Ask::post("/nowhere/a").header("x-cluster", "there-is-none");
    vec![
        Row("/redirect/a", Ask::post("/redirect/a"), 301, UNSENT),
        Row("/direct/a", Ask::post("/direct/a"), 200, UNSENT),
        Row("/closed/a", Ask::post("/closed/a"), 503, UNSENT),
        Row("/nowhere/a", nowhere, 503, UNSENT),
        Row("/a/fault", fault, 418, UNSENT),
    ]
}

/// The upstream may still be working: unclean.
fn doubtful_rows() -> Vec<Row> {
    let post =
        |path: &'static str, behaviour: &str, status| Row(path, Ask::post(path).behave(behaviour), status, UNCLEAN);
    vec![
        post("/a/cut-before-head", "cut-before-head", 503),
        post("/a/cut-in-body", "cut-in-body; body=10; parts=1", 0),
        post("/a/cut-in-slow-body", "cut-in-body; body=10; parts=2; pause=100", 0),
        post("/garbage/a", "", 502),
        post("/half/a", "", 0),
        post("/timeout/before-head", "never", 504),
        post("/timeout/in-body", "body=100; parts=10; pause=200", 0),
        post("/idle/a", "never", 504),
        post("/max/a", "never", 504),
        post("/retry/status", "status=503", 503),
        post("/retry/reset", "cut-before-head", 503),
    ]
}

/// Breaks if a rejected request is told to be held, or reaches the upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_never_get_their_lock() {
    let stage = Arc::new(Stage::set().await);
    let mut table = Table::default();
    let it = Arc::clone(&stage);
    table.row("rejected", async move {
        let answer = Ask::post("/rejected/a").send(it.proxy()).await.unwrap();
        assert_eq!(answer.status, 503);
        it.host.heartbeats_pass(2).await;
        let asked = it.host.asked("default/rejected:a");
        assert!(asked.len() == 1 && asked[0].ended.is_empty(), "there is nothing to end: {asked:#?}");
    });
    let it = Arc::clone(&stage);
    table.row("client leaves", async move {
        let client = Ask::post("/later/left").spawn(it.proxy());
        let asked = it.host.was_asked("default/later:left").await;
        client.abort();
        it.assert_ended("/later/left", Ended::Cancelled).await;
        // The grant that crossed the cancel on its way.
        it.host.grant(&asked, VALID).await;
        let ended = |ended: &[_]| ended.len() == 2;
        let asked = it.host.saw("default/later:left", "the late grant returned", |asked| ended(&asked[0].ended)).await;
        assert_eq!(asked[0].ended[1].1, UNSENT);
    });
    let it = Arc::clone(&stage);
    table.row("client closes its half", async move {
        let mut stream = TcpStream::connect(it.proxy()).await.unwrap();
        stream.write_all(b"POST /later/half HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        it.host.was_asked("default/later:half").await;
        stream.shutdown().await.unwrap();
        it.assert_ended("/later/half", Ended::Cancelled).await;
    });
    let it = Arc::clone(&stage);
    table.row("Envoy's patience ends", async move {
        let answer = Ask::post("/later/idle").send(it.proxy()).await.unwrap();
        assert_eq!(answer.status, 504);
        it.assert_ended("/later/idle", Ended::Cancelled).await;
    });
    table.finish().await;
    assert!(stage.upstream.executions().is_empty(), "{:#?}", stage.upstream.executions());
}

/// Breaks if a grant that is out of date on arrival is acted on, or never given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_grant_is_returned_and_asked_for_again() {
    let stage = Stage::set().await;
    assert_eq!(Ask::post("/expired/a").send(stage.proxy()).await.unwrap().status, 200);
    stage.host.heartbeats_pass(2).await;
    let asked = stage.host.asked("default/expired:a");
    let ended: Vec<Vec<Ended>> = asked.iter().map(|asked| asked.ended.iter().map(|ended| ended.1).collect()).collect();
    assert_eq!(ended, [[UNSENT], [CLEAN]]);
    let tokens: Vec<_> = stage.upstream.executions().iter().map(|execution| execution.token()).collect();
    assert_eq!(tokens, [asked[1].token], "the upstream sees the second grant only");
}

/// Breaks if a client can free its lock by going away while the upstream works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_while_the_upstream_works() {
    let stage = Arc::new(Stage::set().await);
    let mut table = Table::default();
    for (path, behaviour) in [("/a/left-working", "never"), ("/a/left-in-body", "body=100; parts=100; pause=100")] {
        let it = Arc::clone(&stage);
        table.row(path, async move {
            let client = Ask::post(path).behave(behaviour).spawn(it.proxy());
            it.upstream.began(path).await;
            client.abort();
            it.assert_ended(path, UNCLEAN).await;
            it.upstream.was_abandoned(path).await;
        });
    }
    let it = Arc::clone(&stage);
    table.row("client closes its half", async move {
        let mut stream = TcpStream::connect(it.proxy()).await.unwrap();
        let request = b"POST /a/half-closed HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nx-behave: never\r\n\r\n";
        stream.write_all(request).await.unwrap();
        it.upstream.began("/a/half-closed").await;
        stream.shutdown().await.unwrap();
        it.assert_ended("/a/half-closed", UNCLEAN).await;
    });
    table.finish().await;
}

/// Breaks if the lock of a WebSocket is released by its 101, or never; or if a client that vanishes counts as a close,
/// for the application may go on with what it was told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_holds_its_lock_until_it_is_closed() {
    let stage = Arc::new(Stage::set().await);
    let mut table = Table::default();
    for (path, closed_by_upstream, ended) in [("/a/closed", true, CLEAN), ("/a/vanished", false, UNCLEAN)] {
        let it = Arc::clone(&stage);
        table.row(path, async move {
            let mut stream = open_socket(&it, path).await;
            it.host.heartbeats_pass(2).await;
            assert!(it.host.asked(&key_of(path))[0].ended.is_empty(), "the socket is open");
            if closed_by_upstream {
                stream.write_all(CLOSE).await.unwrap();
                stream.read_to_end(&mut Vec::new()).await.unwrap();
            }
            drop(stream);
            it.assert_ended(path, ended).await;
        });
    }
    table.finish().await;
}

async fn open_socket(stage: &Stage, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(stage.proxy()).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_until(&mut stream, b"\r\n\r\n").await;
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"to and fro").await.unwrap();
    assert_eq!(read_until(&mut stream, b"fro").await, b"to and fro");
    stream
}

async fn read_until(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut read = Vec::new();
    while !read.ends_with(end) {
        read.push(stream.read_u8().await.expect("the other side goes on"));
    }
    read
}

/// Breaks if the first lock of an internally redirected request leaks, or the second request goes unguarded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_internal_redirect_takes_one_lock_after_the_other() {
    let stage = Stage::set().await;
    let ask = Ask::post("/internal/first").behave("status=302; location=http://a/internal/second");
    // The behaviour is for both requests, so Envoy's limit of one redirect passes the second 302 on.
    assert_eq!(ask.send(stage.proxy()).await.unwrap().status, 302);
    stage.assert_ended("/internal/first", CLEAN).await;
    stage.assert_ended("/internal/second", CLEAN).await;
    let (first, second) =
        (&stage.host.asked("default/internal:first")[0], &stage.host.asked("default/internal:second")[0]);
    assert!(first.ended[0].0 <= second.granted.unwrap(), "never two locks at once");
}

/// Breaks if a request whose lock is lost goes on beside the next holder, or is not confirmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_lock_aborts_the_request_unless_the_rule_says_otherwise() {
    let stage = Arc::new(Stage::set().await);
    let mut table = Table::default();
    for (path, behaviour, status) in
        [("/a/lost", "never", 503), ("/a/lost-in-body", "body=100; parts=100; pause=100", 0)]
    {
        let it = Arc::clone(&stage);
        table.row(path, async move {
            let client = Ask::post(path).behave(behaviour).spawn(it.proxy());
            it.upstream.began(path).await;
            if status == 0 {
                // The head of the answer is on its way, so that the loss comes in the middle of the body.
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
            it.host.lose(&it.host.was_asked(&key_of(path)).await, LostReason::Forced).await;
            let got = client.await.unwrap().map(|answer| answer.status).unwrap_or_default();
            assert_eq!(got, status, "the status");
            it.assert_ended(path, UNCLEAN).await;
            it.upstream.was_abandoned(path).await;
        });
    }
    let it = Arc::clone(&stage);
    table.row("gRPC", async move {
        let mut client = Connection::open_http2(it.proxy()).await.unwrap();
        let ask = Ask::post("/a/lost-grpc").behave("never").header("content-type", "application/grpc");
        let client = tokio::spawn(async move { client.send(&ask.header("te", "trailers")).await });
        it.upstream.began("/a/lost-grpc").await;
        it.host.lose(&it.host.was_asked(&key_of("/a/lost-grpc")).await, LostReason::Forced).await;
        let answer = client.await.unwrap().unwrap();
        let told = (answer.status, answer.header("grpc-status"), answer.header("content-type"));
        assert_eq!(told, (200, "10", "application/grpc"), "gRPC clients read ABORTED");
        it.assert_ended("/a/lost-grpc", UNCLEAN).await;
    });
    let it = Arc::clone(&stage);
    table.row("on_lost=continue", async move {
        let client = Ask::post("/continue/a").behave("delay=500").spawn(it.proxy());
        it.upstream.began("/continue/a").await;
        it.host.lose(&it.host.was_asked("default/continue:a").await, LostReason::Forced).await;
        it.assert_ended("/continue/a", UNCLEAN).await;
        assert_eq!(client.await.unwrap().unwrap().status, 200);
    });
    table.finish().await;
}

/// Breaks if a request believes in its lock for longer than was promised (I3).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_answers_no_heartbeats_ends_holds_when_its_promise_is_over() {
    let stage = Stage::set().await;
    let client = Ask::post("/later/promise").behave("never").spawn(stage.proxy());
    let asked = stage.host.was_asked("default/later:promise").await;
    stage.host.go_deaf();
    let valid = Duration::from_secs(2);
    stage.host.grant(&asked, valid).await;
    stage.upstream.began("/later/promise").await;
    let answer = client.await.unwrap().unwrap();
    assert_eq!(answer.status, 503, "{answer:?}");
    stage.upstream.was_abandoned("/later/promise").await;
    let granted = stage.host.asked("default/later:promise")[0].granted.unwrap();
    let abandoned = stage.upstream.executions()[0].abandoned.unwrap();
    // The promise began before the grant. What is allowed on top is the time that it takes to see an abort.
    assert!(abandoned < granted + valid + Duration::from_millis(500), "{:?}", abandoned - granted);
}

/// Breaks if a proxy that shuts down takes its locks with it until the session's TTL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_envoy_ends_what_it_holds_and_waits_for() {
    let mut stage = Stage::set().await;
    let holder = Ask::post("/a/held").behave("never").spawn(stage.proxy());
    let waiter = Ask::post("/later/waiting").spawn(stage.proxy());
    stage.upstream.began("/a/held").await;
    stage.host.was_asked("default/later:waiting").await;
    stage.envoy.terminate();
    assert_eq!(stage.host.was_ended("default/a:held").await, UNCLEAN);
    assert_eq!(stage.host.was_ended("default/later:waiting").await, Ended::Cancelled);
    stage.envoy.process.ended(Duration::from_secs(30)).await;
    assert!(holder.await.unwrap().is_err() && waiter.await.unwrap().is_err(), "nobody answers them any more");
}
