//! `cargo xtask bench overhead`: Envoy CPU, throughput and latency of a route behind Turnstile, and behind others.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::machine::{Machine, first_line};
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

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    Help,
    Serve(authz::Kind),
    Measure(Plan),
}

/// How to measure.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    rounds: u32,
    seconds: u64,
    rows: Vec<Row>,
}

/// Runs the program on its arguments.
pub async fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    let result = match Task::parse(arguments) {
        Ok(Task::Help) => {
            print!("{HELP}");
            Ok(())
        }
        Ok(Task::Serve(kind)) => authz::serve(kind).await.map_err(|error| Fault::File("a TCP port".into(), error)),
        Ok(Task::Measure(plan)) => measure(&plan).await,
        Err(fault) => Err(fault),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("bench-overhead: {fault}");
            ExitCode::FAILURE
        }
    }
}

impl Task {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Fault> {
        let mut plan = Plan { rounds: 5, seconds: 4, rows: Vec::new() };
        while let Some(argument) = arguments.next() {
            if let Some(kind) = authz::Kind::of_command(&argument) {
                return Ok(Self::Serve(kind));
            }
            let mut value = || arguments.next().ok_or_else(|| Fault::Argument(format!("{argument} needs a value")));
            match argument.as_str() {
                "--help" | "-h" => return Ok(Self::Help),
                "--rounds" => plan.rounds = super::number(&argument, &value()?)?,
                "--seconds" => plan.seconds = super::number(&argument, &value()?)?.into(),
                "--only" => {
                    let name = value()?;
                    let row = Row::ALL.into_iter().find(|row| row.name() == name);
                    plan.rows.push(row.ok_or_else(|| Fault::Argument(format!("there is no row {name:?}")))?);
                }
                other => return Err(Fault::Argument(format!("{other:?} is not understood"))),
            }
        }
        // In the order of the table, each once.
        let chosen = |row: &Row| plan.rows.is_empty() || plan.rows.contains(row);
        plan.rows = Row::ALL.into_iter().filter(chosen).collect();
        Ok(Self::Measure(plan))
    }
}

async fn measure(plan: &Plan) -> Result<(), Fault> {
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
    let dir = artifacts::target().join("bench");
    fs::create_dir_all(&dir).map_err(|error| Fault::File(dir.clone(), error))?;
    let markdown = report.markdown();
    for (name, text) in [("overhead.md", &markdown), ("overhead.json", &format!("{:#}\n", report.json()))] {
        let path = dir.join(name);
        fs::write(&path, text).map_err(|error| Fault::File(path, error))?;
    }
    println!("\n{markdown}\nAlso in {}, as overhead.md and overhead.json.", dir.display());
    Ok(())
}

/// Measures a row once, on processes of its own: what is special about one start of them must not mark a whole row.
async fn measure_row(plan: &Plan, row: Row, round: u32) -> Result<Vec<Measured>, Fault> {
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

fn setup(plan: &Plan) -> Result<Setup, Fault> {
    let source = env!("CARGO_MANIFEST_DIR");
    let commit = first_line(Path::new("git"), &["-C", source, "describe", "--always", "--dirty"]);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Task, String> {
        Task::parse(line.split_whitespace().map(str::to_owned)).map_err(|fault| fault.to_string())
    }

    #[test]
    fn without_arguments_everything_is_measured() {
        let all = Plan { rounds: 5, seconds: 4, rows: Row::ALL.to_vec() };
        assert_eq!(parse(""), Ok(Task::Measure(all)));
    }

    #[test]
    fn chosen_rows_keep_the_order_of_the_table() {
        let plan = Plan { rounds: 2, seconds: 1, rows: vec![Row::AuthzHttp, Row::RepeatedKeys] };
        assert_eq!(parse("--only turnstile --rounds 2 --only authz-http --seconds 1"), Ok(Task::Measure(plan)));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (line, named) in [
            ("--only tournstile", "tournstile"),
            ("--only", "--only"),
            ("--rounds 0", "--rounds"),
            ("--seconds 1.5", "1.5"),
            ("--quick", "--quick"),
        ] {
            let fault = parse(line).unwrap_err();
            assert!(fault.contains(named), "{line}: {fault}");
        }
    }
}
