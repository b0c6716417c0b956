//! `cargo xtask bench engine`: the speed and size of the lock engine, alone and behind a host's gRPC port, in one table.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use self::alone::Alone;
use self::load::Sample;
use self::row::Row;
use self::table::Table;
use super::Fault;
use super::machine::{Machine, first_line};
use crate::artifacts;

pub mod alone;
pub mod load;
pub mod row;
pub mod table;

const HELP: &str = "\
bench-engine [--rounds N] [--seconds N] [--only ROW]... [--criterion DIR] [--memory FILE]

Loads a host that is pinned to one core with lock cycles through its gRPC port, and prints them in one table with what
criterion left of the engine alone. Leaves it in engine.md and engine.json in target/bench.

  --rounds N       how often every row is measured (5)
  --seconds N      length of a window (4)
  --only ROW       only this row of sessions: keys, hot-keys, hot-key; may be repeated
  --criterion DIR  what `cargo bench -p turnstile-core --bench engine` left
  --memory FILE    what `cargo bench -p turnstile-core --bench memory` printed
";

/// How to measure.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    rounds: u32,
    seconds: u64,
    rows: Vec<Row>,
    criterion: Option<PathBuf>,
    memory: Option<PathBuf>,
}

/// Runs the program on its arguments.
pub async fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    let result = match Plan::parse(arguments) {
        Ok(None) => {
            print!("{HELP}");
            Ok(())
        }
        Ok(Some(plan)) => measure(&plan).await,
        Err(fault) => Err(fault),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("bench-engine: {fault}");
            ExitCode::FAILURE
        }
    }
}

impl Plan {
    /// `None` asks for help.
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>, Fault> {
        let mut plan = Self { rounds: 5, seconds: 4, rows: Vec::new(), criterion: None, memory: None };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| Fault::Argument(format!("{argument} needs a value")));
            match argument.as_str() {
                "--help" | "-h" => return Ok(None),
                "--rounds" => plan.rounds = super::number(&argument, &value()?)?,
                "--seconds" => plan.seconds = super::number(&argument, &value()?)?.into(),
                "--criterion" => plan.criterion = Some(value()?.into()),
                "--memory" => plan.memory = Some(value()?.into()),
                "--only" => {
                    let name = value()?;
                    let row = Row::ALL.into_iter().find(|row| row.name() == name);
                    plan.rows.push(row.ok_or_else(|| Fault::Argument(format!("there is no row {name:?}")))?);
                }
                other => return Err(Fault::Argument(format!("{other:?} is not understood"))),
            }
        }
        let chosen = |row: &Row| plan.rows.is_empty() || plan.rows.contains(row);
        plan.rows = Row::ALL.into_iter().filter(chosen).collect();
        Ok(Some(plan))
    }
}

async fn measure(plan: &Plan) -> Result<(), Fault> {
    let alone = Alone::read(plan.criterion.as_deref(), plan.memory.as_deref())?;
    let machine = Machine::look(&std::env::temp_dir())?;
    let cores = load::Cores::take()?;
    let mut samples: Vec<(Row, Sample)> = Vec::new();
    for round in 1..=plan.rounds {
        for &row in &plan.rows {
            eprint!("round {round} of {}: {} ... ", plan.rounds, row.title());
            let sample = load::measure(row, &cores, Duration::from_secs(plan.seconds)).await?;
            eprintln!("{:.0} cycles/s, {:.1} us of the host's core each", sample.cycles_per_s, sample.host_us);
            samples.push((row, sample));
        }
    }
    let source = env!("CARGO_MANIFEST_DIR");
    let commit = first_line(Path::new("git"), &["-C", source, "describe", "--always", "--dirty"]);
    let table = Table { rounds: plan.rounds, seconds: plan.seconds, commit, machine, alone, samples };
    let dir = artifacts::target().join("bench");
    let markdown = table.markdown();
    let json = serde_json::to_string_pretty(&table.json()).expect("plain data becomes JSON");
    fs::create_dir_all(&dir).map_err(|error| Fault::File(dir.clone(), error))?;
    for (name, text) in [("engine.md", &markdown), ("engine.json", &json)] {
        let path = dir.join(name);
        fs::write(&path, text).map_err(|error| Fault::File(path, error))?;
    }
    println!("\n{markdown}\nAlso in {}, as engine.md and engine.json.", dir.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Plan>, String> {
        Plan::parse(line.split_whitespace().map(str::to_owned)).map_err(|fault| fault.to_string())
    }

    #[test]
    fn without_arguments_all_rows_are_measured() {
        let all = Plan { rounds: 5, seconds: 4, rows: Row::ALL.to_vec(), criterion: None, memory: None };
        assert_eq!(parse(""), Ok(Some(all)));
        assert_eq!(parse("--rounds 2 --help"), Ok(None));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (line, named) in [("--only key", "key"), ("--rounds 0", "--rounds"), ("--criterion", "--criterion")] {
            let fault = parse(line).unwrap_err();
            assert!(fault.contains(named), "{line}: {fault}");
        }
    }
}
