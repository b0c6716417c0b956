//! `cargo xtask bench engine`: the speed and size of the lock engine, alone and behind a host's gRPC port, in one table.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use self::alone::Alone;
use self::load::Sample;
use self::row::Row;
use self::table::Table;
use super::Fault;
use super::machine::{self, Machine, Pinned};
use super::program::{self, Flags};

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

/// Runs the program on its arguments.
pub async fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    program::end("bench-engine", run(arguments).await)
}

async fn run(arguments: impl Iterator<Item = String>) -> Result<(), Fault> {
    let (mut criterion, mut memory) = (None, None);
    let plan = Flags::parse(arguments, |flag, value| {
        let place: &mut Option<PathBuf> = match flag {
            "--criterion" => &mut criterion,
            "--memory" => &mut memory,
            _ => return Ok(false),
        };
        *place = Some(value()?.into());
        Ok(true)
    })?;
    match plan {
        None => {
            print!("{HELP}");
            Ok(())
        }
        Some(plan) => measure(&plan, Alone::read(criterion.as_deref(), memory.as_deref())?).await,
    }
}

async fn measure(plan: &Flags<Row>, alone: Alone) -> Result<(), Fault> {
    let looked_at = Machine::look(&std::env::temp_dir())?;
    let [core, own] = machine::two_cores()?;
    let _pinned = Pinned::to(own)?;
    let mut samples: Vec<(Row, Sample)> = Vec::new();
    for round in 1..=plan.rounds {
        for &row in &plan.rows {
            eprint!("round {round} of {}: {} ... ", plan.rounds, row.title());
            let sample = load::measure(row, core, Duration::from_secs(plan.seconds)).await?;
            eprintln!("{:.0} cycles/s, {:.1} us of the host's core each", sample.cycles_per_s, sample.host_us);
            samples.push((row, sample));
        }
    }
    let commit = program::commit();
    let table = Table { rounds: plan.rounds, seconds: plan.seconds, commit, machine: looked_at, alone, samples };
    program::leave("engine", &table.markdown(), &table.json())
}
