//! `cargo xtask bench overhead`: Envoy CPU, throughput and latency of a route behind Turnstile, and behind others.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use super::machine::{Machine, first_line};
use super::program::{self, Flags};
use super::report::{CONNECTIONS_THAT_COUNT, Measured, Report, Setup};
use super::rig::Rig;
use super::row::Row;
use super::wrk::{Window, Wrk};
use super::{Fault, authz};
use crate::artifacts;

/// The number of the written-down configuration; see `overhead.yaml`.
const CONFIGURATION: u32 = 1;

/// The one that counts comes first: what the other leaves behind cannot touch it.
const CONNECTIONS: [u32; 2] = [CONNECTIONS_THAT_COUNT, 1];

const WARM_UP: Duration = Duration::from_secs(1);

const HELP: &str = "\
bench-overhead [--rounds N] [--seconds N] [--only ROW]...

Measures one route of Envoy with no filter, with a wasm filter that does nothing, behind ext_authz over HTTP and gRPC
(a server that always allows), and behind Turnstile on 1,000 repeated keys and on keys never seen before. Prints the
table, and leaves it in overhead.md and overhead.json in target/bench. Succeeds if everything worked, whether or not
the ratio to reach is reached.

  --rounds N    how often every row is measured (5)
  --seconds N   length of a window; each row has two a round, with 32 connections and with 1 (4)
  --only ROW    only this row: none, noop, authz-http, authz-grpc, turnstile, turnstile-fresh; may be repeated
";

/// Runs the program on its arguments.
pub async fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    let mut arguments = arguments.peekable();
    let result = match arguments.peek().and_then(|first| authz::Kind::of_command(first)) {
        Some(kind) => authz::serve(kind).await.map_err(|error| Fault::File("a TCP port".into(), error)),
        None => run(arguments).await,
    };
    program::end("bench-overhead", result)
}

async fn run(arguments: impl Iterator<Item = String>) -> Result<(), Fault> {
    match Flags::parse(arguments, |_, _| Ok(false))? {
        None => {
            print!("{HELP}");
            Ok(())
        }
        Some(plan) => measure(&plan).await,
    }
}

async fn measure(plan: &Flags<Row>) -> Result<(), Fault> {
    let setup = setup(plan)?;
    let mut measured = Vec::new();
    for round in 1..=plan.rounds {
        for &row in &plan.rows {
            eprint!("round {round} of {}: {} ... ", plan.rounds, row.title());
            let windows = measure_row(plan, row, round).await?;
            let rates: Vec<String> = windows.iter().map(|entry| format!("{:.1}", entry.sample.envoy_us)).collect();
            eprintln!("Envoy CPU {} us/request", rates.join(", "));
            measured.extend(windows);
        }
    }
    let report = Report { setup, measured };
    program::leave("overhead", &report.markdown(), &report.json())
}

/// Measures a row once, on processes of its own: what is special about one start of them must not mark a whole row.
async fn measure_row(plan: &Flags<Row>, row: Row, round: u32) -> Result<Vec<Measured>, Fault> {
    let mut rig = Rig::start(row).await?;
    let first = round * 100;
    rig.load(&Window { connections: CONNECTIONS_THAT_COUNT, length: WARM_UP, number: first })?;
    let mut windows = Vec::new();
    for (connections, number) in CONNECTIONS.into_iter().zip(first + 1..) {
        let window = Window { connections, length: Duration::from_secs(plan.seconds), number };
        windows.push(Measured { row, round, connections, sample: rig.load(&window)? });
    }
    rig.verify().await?;
    Ok(windows)
}

/// `PATH  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`, from the commit on.
fn envoy_version() -> String {
    let line = first_line(&artifacts::envoy(), &["--version"]);
    line.split_once("version: ").map_or(line.clone(), |(_, version)| version.to_owned())
}

fn setup(plan: &Flags<Row>) -> Result<Setup, Fault> {
    let commit = program::commit();
    let filter = artifacts::plugin_wasm();
    let bytes = fs::metadata(&filter).map_err(|error| Fault::File(filter, error))?.len();
    let versions = vec![
        ("Envoy".to_owned(), envoy_version()),
        ("Turnstile".to_owned(), format!("{}, {commit}", first_line(&artifacts::turnstile_bin(), &["--version"]))),
        ("filter".to_owned(), format!("{bytes} bytes of wasm")),
        ("wrk".to_owned(), Wrk::version()?),
    ];
    Ok(Setup {
        configuration: CONFIGURATION,
        rounds: plan.rounds,
        seconds: plan.seconds,
        warm_up_seconds: WARM_UP.as_secs(),
        connections: CONNECTIONS.to_vec(),
        versions,
        machine: Machine::look(&std::env::temp_dir())?,
    })
}
