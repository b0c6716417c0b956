//! The filter's real wasm file, judged by what client, upstream and host get to see.

mod basics;
mod endings;
mod hostile;
mod losses;
mod sessions;
mod storm;

use std::time::Duration;

use turnstile_tests::artifacts::plugin_wasm;
use turnstile_tests::proxy_wasm::{InFlight, Outcome, Request, Setup, Worker};

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
