//! `turnstile guard` as its user runs it: one command in front of an unsafe service, mistakes included.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;
use turnstile_tests::artifacts;
use turnstile_tests::checker::judge;
use turnstile_tests::http::Ask;
use turnstile_tests::load::Load;
use turnstile_tests::ports::free_port;
use turnstile_tests::process::Process;
use turnstile_tests::upstream::Upstream;
use turnstile_tests::wait::{PATIENCE, until};

const RULE: &str = "POST /accounts/{id}/transfer key=account:{id} wait=30s lock_delay=1s";

struct Guard {
    process: Process,
    listen: SocketAddr,
    _directory: TempDir,
}

impl Guard {
    async fn start(upstream: SocketAddr, more: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let database = directory.path().join("locks.db").display().to_string();
        let mut args = ["guard", "--listen", &listen.to_string(), "--upstream", &format!("http://{upstream}")]
            .map(str::to_owned)
            .to_vec();
        args.extend(["--database".to_owned(), database, "--concurrency".to_owned(), "2".to_owned()]);
        args.extend(["--envoy".to_owned(), artifacts::envoy().display().to_string()]);
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        let process = Process::start("guard", &artifacts::turnstile_bin(), &args, &directory.path().join("guard.log"));
        let guard = Self { process, listen, _directory: directory };
        until("guard to be ready", PATIENCE, async || guard.process.output().contains("ready: http://").then_some(()))
            .await;
        guard
    }
}

/// Runs a copy of the program that lies in `directory`, far from any Envoy that was fetched.
fn run(args: &[&str], directory: &Path) -> Output {
    let program = directory.join("turnstile");
    if !program.exists() {
        std::fs::copy(artifacts::turnstile_bin(), &program).expect("the program can be copied");
    }
    let mut command = Command::new(program);
    command.args(args).current_dir(directory).env_remove("TURNSTILE_PLUGIN_WASM").env("PATH", "");
    command.output().expect("the program can be run")
}

#[tokio::test]
async fn one_command_serialises_a_service_that_is_not_safe() {
    let upstream = Upstream::start().await;
    let guard = Guard::start(upstream.address, &["--rule", RULE, "--rule", "GET /free/{x} key=free:{x} wait=0"]).await;
    let load = Load::start(&[guard.listen], 32, 600, |number| {
        Ask::post(&format!("/accounts/{}/transfer", number % 4)).behave("delay=1")
    });
    load.finish().await.assert_all_ok(600);
    let executions = upstream.executions();
    let verdict = judge(&executions);
    verdict.assert_undisturbed();
    assert_eq!((verdict.executions, verdict.keys), (600, 4));
}

#[tokio::test]
async fn sigterm_lets_the_request_under_way_end_and_leaves_no_lock_behind() {
    let upstream = Upstream::start().await;
    let mut guard = Guard::start(upstream.address, &["--rule", RULE]).await;
    let ask = Ask::post("/accounts/1/transfer").behave("delay=1500");
    let request = ask.spawn(guard.listen);
    upstream.began("/accounts/1/transfer").await;
    guard.process.signal(Signal::TERM);
    let answer = request.await.expect("the client ends").expect("the request is answered");
    assert_eq!(answer.status, 200);
    let status = guard.process.ended(PATIENCE).await;
    assert!(status.success(), "{status}: {}", guard.process.output());
}

#[tokio::test]
async fn no_envoy_outlives_a_guard_that_was_killed() {
    let upstream = Upstream::start().await;
    let mut guard = Guard::start(upstream.address, &["--rule", RULE]).await;
    guard.process.kill();
    until("Envoy to be gone", Duration::from_secs(5), async || {
        tokio::net::TcpStream::connect(guard.listen).await.is_err().then_some(())
    })
    .await;
}

#[test]
fn mistakes_are_told_before_anything_is_started() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    std::fs::write(directory.path().join("rules"), "# ours\nPOST /a/{id} key=a:{id}\nPOST /b/{id} key=b:{nr}\n")
        .expect("the rules can be written");
    let upstream = ["guard", "--upstream", "http://127.0.0.1:1"];
    let case = |more: &[&str], code: i32, expected: &[&str]| {
        let output = run(&[upstream.as_slice(), more].concat(), directory.path());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{more:?}: {said}");
        for expected in expected {
            assert!(said.contains(expected), "{more:?} should mention {expected:?}: {said}");
        }
        assert!(!directory.path().join("turnstile.db").exists(), "{more:?} left a database behind");
    };
    case(&[], 64, &["--rule"]);
    case(&["--rule", "POST /a/{id} key=a:{nr} wait=soon"], 64, &["nr", "wait"]);
    case(&["--rules", "rules"], 64, &["line 3", "nr"]);
    case(&["--rules", "missing"], 64, &["missing"]);
    case(&["--rule", RULE], 1, &["cargo xtask setup", "--envoy"]);
    case(&["--rule", RULE, "--envoy", "nowhere/envoy"], 1, &["nowhere/envoy"]);
}

#[test]
fn the_filter_can_be_written_out_for_other_envoys() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let output = run(&["plugin", "--output", "out.wasm"], directory.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let written = std::fs::read(directory.path().join("out.wasm")).expect("the file is there");
    let built = std::fs::read(artifacts::plugin_wasm()).expect("the filter was built");
    assert!(written == built, "the program embeds another filter than the one that was built");
}
