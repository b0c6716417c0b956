//! The legacy bank of the demo: `legacy-bank --listen ADDRESS --data DIRECTORY [--workers N] [--work-ms N]`.

use std::process::ExitCode;
use std::time::Duration;

use turnstile_tests::demo::bank::{self, Options};

enum Role {
    Parent,
    WorkerOf(u32),
}

fn main() -> ExitCode {
    let result = match parse(std::env::args().skip(1)) {
        Some((Role::Parent, options)) => bank::run_parent(&options),
        Some((Role::WorkerOf(parent), options)) => bank::run_worker(&options, parent),
        None => {
            eprintln!("usage: legacy-bank --data DIRECTORY [--listen ADDRESS] [--workers N] [--work-ms N]");
            return ExitCode::from(64);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("legacy-bank: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Option<(Role, Options)> {
    let mut role = Role::Parent;
    let mut data = None;
    let mut options =
        Options { listen: ([127, 0, 0, 1], 0).into(), data: "".into(), workers: 4, work: Duration::from_millis(2) };
    while let Some(name) = arguments.next() {
        let value = arguments.next()?;
        match name.as_str() {
            "--data" => data = Some(value.into()),
            "--listen" => options.listen = value.parse().ok()?,
            "--workers" => options.workers = value.parse().ok().filter(|workers| (1..=64).contains(workers))?,
            "--work-ms" => options.work = Duration::from_millis(value.parse().ok()?),
            // How the parent calls its workers.
            "--worker-of" => role = Role::WorkerOf(value.parse().ok()?),
            "--work-us" => options.work = Duration::from_micros(value.parse().ok()?),
            _ => return None,
        }
    }
    options.data = data?;
    Some((role, options))
}
