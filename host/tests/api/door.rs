//! Who is not let in: web pages, other media types, bodies without end.

use serde_json::json;

use crate::bench::{Ask, LONG, Running, within};

const SESSION: &str = "/v1/sessions/0123456789abcdef0123456789abcdef";

fn every_route() -> Vec<Ask> {
    let post = |path: &str| Ask::post(path, json!({}));
    vec![
        post("/v1/sessions"),
        post(&format!("{SESSION}/heartbeats")),
        post(&format!("{SESSION}/locks")),
        post("/v1/release"),
        Ask::new("DELETE", SESSION),
        Ask::new("DELETE", &format!("{SESSION}/locks/1")),
        Ask::new("GET", "/v1/locks"),
        Ask::new("GET", "/v1/locks/default/a"),
        Ask::new("GET", "/v1/audit"),
        Ask::new("GET", "/nothing"),
    ]
}

#[tokio::test]
async fn web_pages_are_turned_away_at_every_route() {
    let running = Running::start("").await;
    for ask in every_route() {
        let from_page = ask.clone().header("origin", "null");
        from_page.send(running.api).await.problem(403, "web-page");
        let rebound = ask.header("host", "evil.example:7880");
        rebound.send(running.api).await.problem(421, "host-name");
    }
    let named = Ask::new("GET", "/v1/locks").header("host", "localhost:1");
    named.send(running.api).await.expect(200);
}

#[tokio::test]
async fn an_insecure_api_has_any_name_and_still_takes_nothing_from_web_pages() {
    let running = Running::start("[api]\ninsecure = true").await;
    let named = Ask::new("GET", "/v1/locks").header("host", "locks.example");
    named.clone().send(running.api).await.expect(200);
    named.header("origin", "http://locks.example").send(running.api).await.problem(403, "web-page");
}

#[tokio::test]
async fn bodies_are_json_and_say_so() {
    let running = Running::start("").await;
    for path in ["/v1/sessions", &format!("{SESSION}/heartbeats"), &format!("{SESSION}/locks"), "/v1/release"] {
        for content_type in
            [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("multipart/form-data")]
        {
            let mut ask = Ask::new("POST", path).body("{}");
            if let Some(content_type) = content_type {
                ask = ask.header("content-type", content_type);
            }
            ask.send(running.api).await.problem(415, "media-type");
        }
    }
    let ask = Ask::new("POST", "/v1/sessions").header("content-type", "Application/JSON; charset=utf-8").body("{}");
    ask.send(running.api).await.expect(201);
}

#[tokio::test]
async fn bodies_are_bounded_whether_they_say_so_or_not() {
    let running = Running::start("").await;
    let padded = |bytes: usize| format!("{}{{}}", " ".repeat(bytes - 2));
    let ask = |body: String| Ask::new("POST", "/v1/sessions").header("content-type", "application/json").body(body);
    ask(padded(65_536)).send(running.api).await.expect(201);
    ask(padded(65_537)).send(running.api).await.problem(413, "too-large");
    // In chunks, without a length.
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(running.api).await.unwrap();
    let head = "POST /v1/sessions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("8000\r\n{}\r\n", " ".repeat(0x8000));
    // The host may stop reading at any time after the bound.
    for _ in 0..4 {
        let _ = stream.write_all(chunk.as_bytes()).await;
    }
    let mut answer = [0; 12];
    within(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn what_is_no_route_is_a_problem_too() {
    let running = Running::start(LONG).await;
    for path in ["/", "/v1", "/v2/sessions", "/v1/locks/", "/v1/sessions/", "/live"] {
        running.get(path).await.problem(404, "path");
    }
    for (method, path) in
        [("GET", "/v1/sessions"), ("PUT", "/v1/locks"), ("DELETE", "/v1/locks/default/a"), ("GET", "/v1/release")]
    {
        let answer = Ask::new(method, path).send(running.api).await;
        answer.problem(405, "method");
        assert!(!answer.header("allow").is_empty(), "{answer:?}");
    }
}
