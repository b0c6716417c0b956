//! The demo as `cargo xtask demo` runs it, smaller: what it claims, how it ends, and that it leaves nothing running.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use turnstile_tests::artifacts;

/// The demo's program with the parts under test and a directory of its own.
fn demo(directory: &TempDir, arguments: &[&str]) -> Command {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"));
    demo.args(arguments)
        .env("TURNSTILE_ENVOY", artifacts::envoy())
        .env("TURNSTILE_BIN", artifacts::turnstile_bin())
        .env("TURNSTILE_DEMO_DIR", directory.path().join("demo"))
        .stdin(Stdio::null());
    demo
}

/// The cells of the table's row `name`.
fn row(output: &str, name: &str) -> Vec<String> {
    let cells = output.lines().find_map(|line| line.trim_start().strip_prefix(name));
    let cells = cells.unwrap_or_else(|| panic!("no row `{name}` in:\n{output}"));
    cells.split_whitespace().map(|cell| cell.replace(',', "")).collect()
}

#[test]
fn deposits_are_lost_past_plain_envoy_and_none_past_turnstile() {
    let directory = tempfile::tempdir().unwrap();
    let output = demo(&directory, &["--connections", "16", "--deposits", "200", "--accounts", "2"]).output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    assert_eq!(row(&text, "answered 200"), ["200", "200"]);
    let lost = row(&text, "DEPOSITS LOST");
    assert!(lost[0].parse::<u32>().unwrap() > 0 && lost[1] == "0", "{text}");
    assert_eq!(row(&text, "money in the accounts")[1], "200");
    assert_eq!(row(&text, "overlapping executions")[1], "0");
    assert_eq!(row(&text, "fencing tokens at the bank"), ["none", "strictly", "rising"]);
}

#[test]
fn a_demo_that_shows_nothing_fails() {
    // One connection does nothing at the same time, so nothing can be lost.
    let directory = tempfile::tempdir().unwrap();
    let output = demo(&directory, &["--plain-only", "--connections", "1", "--deposits", "20"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("nothing was lost past the plain Envoy"), "{errors}");
}

#[test]
fn a_wrong_option_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let output = demo(&directory, &["--deposit", "20"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no option `--deposit`"));
}

#[test]
fn kept_running_it_ends_when_asked_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (mut demo, _output, addresses) = kept(&directory);
    assert!(addresses.iter().all(|address| TcpStream::connect(address).is_ok()), "{addresses:?}");
    kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
    let status = demo.wait().unwrap();
    assert!(status.success(), "{status}");
    assert!(addresses.iter().all(|address| TcpStream::connect(address).is_err()), "{addresses:?}");
}

#[test]
fn killed_it_takes_everything_along() {
    let directory = tempfile::tempdir().unwrap();
    let (mut demo, _output, addresses) = kept(&directory);
    demo.kill().unwrap();
    demo.wait().unwrap();
    let start = Instant::now();
    while addresses.iter().any(|address| TcpStream::connect(address).is_ok()) {
        assert!(start.elapsed() < Duration::from_secs(60), "something still listens on one of {addresses:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A demo that was left running, its output (to be kept open), and where its three programs listen.
fn kept(directory: &TempDir) -> (Child, BufReader<ChildStdout>, Vec<SocketAddr>) {
    let mut demo = demo(directory, &["--keep", "--connections", "16", "--deposits", "200", "--accounts", "2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = Vec::new();
    let mut output = BufReader::new(demo.stdout.take().unwrap());
    for line in output.by_ref().lines() {
        seen.push(line.unwrap());
        if seen.last().is_some_and(|line| line.starts_with("Ctrl-C stops it all")) {
            let address =
                |line: &String| line.split_whitespace().find_map(|word| word.strip_prefix("http://")?.parse().ok());
            let addresses: Vec<SocketAddr> = seen.iter().take(3).filter_map(address).collect();
            assert_eq!(addresses.len(), 3, "{seen:?}");
            return (demo, output, addresses);
        }
    }
    panic!("the demo ended with {} and said {seen:#?}", demo.wait().unwrap());
}
