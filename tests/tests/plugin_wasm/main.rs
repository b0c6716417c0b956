//! The filter's real wasm file, judged by what client, upstream and host get to see.

mod basics;
mod clusters;
mod endings;
mod hostile;
mod keys;
mod losses;
mod reentry;
mod sessions;
mod storm;

use std::time::Duration;

use turnstile_tests::artifacts::plugin_wasm;
use turnstile_tests::proxy_wasm::{InFlight, Outcome, Reply, Request, Setup, Worker};

/// Short enough for many of them, and well above the filter's tick.
const MS: Duration = Duration::from_millis(1);

/// A configuration with these rules, each a line without quotes.
fn configuration(rules: &[&str]) -> String {
    let rules: Vec<String> = rules.iter().map(|rule| format!("\"{rule}\"")).collect();
    format!("{{ \"cluster\": \"turnstile_host\", \"rules\": [{}] }}", rules.join(", "))
}

/// A worker with these rules, and a host that runs.
fn worker(rules: &[&str]) -> Worker {
    Worker::start(&plugin_wasm(), &Setup::new(configuration(rules)))
}

/// The rule that most tests guard with.
const TRANSFER: &str = "POST /accounts/{id}/transfer key=account:{id} wait=5s hold=60s lock_delay=15s";

fn transfer(account: u32) -> Request {
    Request::new("POST", &format!("/accounts/{account}/transfer"))
}

/// A guarded request that the upstream has.
fn held(worker: &Worker, request: Request) -> InFlight {
    let request = worker.request(request);
    assert!(matches!(request.outcome(), Outcome::Upstream { .. }), "{:?}\n{:#?}", request.outcome(), worker.log());
    request
}

/// Checks that a reply is a problem of RFC 9457.
fn problem(reply: Reply) -> Reply {
    assert_eq!(reply.headers.text("content-type").as_deref(), Some("application/problem+json"));
    let body = String::from_utf8(reply.body.clone()).expect("JSON is UTF-8");
    for member in ["\"type\"", "\"title\"", "\"status\""] {
        assert!(body.contains(member), "{member} is missing in {body}");
    }
    assert!(body.contains(&format!("\"status\":{}", reply.status())), "{body}");
    reply
}

/// The last word of a problem's type.
fn problem_type(reply: &Reply) -> String {
    member(reply, "type").strip_prefix("urn:turnstile:problem:").expect("one of ours").to_owned()
}

/// A member of a problem that is a text.
fn member(reply: &Reply, name: &str) -> String {
    let problem: serde_json::Value = serde_json::from_slice(&reply.body).expect("JSON");
    problem[name].as_str().unwrap_or_else(|| panic!("no {name} in {problem}")).to_owned()
}
