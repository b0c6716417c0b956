//! `cargo xtask fuzz`: the fuzz targets of tests/fuzz, each for a bounded time, and what they found once more.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{asked, cargo, exists, openly, quietly, shown};
use crate::debian;
use crate::failure::Failure;
use crate::layout::Layout;
use crate::progress::{Done, Progress};

/// cargo-fuzz, which knows the flags of the instrumentation.
const VERSION: &str = "0.13.2";

/// They are no part of the workspace: cargo finds them by this.
pub(crate) const MANIFEST: &str = "tests/fuzz/Cargo.toml";

const TARGETS: [&str; 3] = ["session", "rules", "engine"];

/// Faults put into the engine on purpose, of which its target must find each.
const MUTATIONS: [&str; 10] = [
    "NoLockDelay",
    "EndBeforePromise",
    "LeaseIgnored",
    "LockDelayNotRaised",
    "SequenceReset",
    "SuspendedGranted",
    "ReleaseLostInResume",
    "SessionCutShort",
    "TimeoutNotTold",
    "PredecessorIgnored",
];

/// How long the target may look for such a fault. It begins with the inputs that it has collected before.
const MUTATION_SECONDS: u32 = 120;

/// A longer input says nothing that a shorter one cannot.
const INPUT_BYTES_MAX: u32 = 2_048;

/// An input that takes longer than this is a find, like a panic.
const INPUT_SECONDS_MAX: u32 = 20;

/// How long each target runs unless told.
const SECONDS: u32 = 60;

/// Steps that [`all`] shows.
pub(crate) const STEPS: usize = PREPARING + TARGETS.len() + 1;

/// Steps that [`prepare`] shows.
const PREPARING: usize = 3;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    Run { targets: Vec<&'static str>, seconds: u32 },
    Replay { target: &'static str, input: PathBuf },
}

/// Runs the targets, or one of them on one input.
pub(crate) fn run(layout: &Layout, arguments: &[String]) -> Result<(), Failure> {
    match Task::parse(arguments)? {
        Task::Run { targets, seconds } => {
            let steps = PREPARING + targets.len() + usize::from(targets.contains(&"engine"));
            let mut progress = Progress::new(steps);
            run_targets(layout, &mut progress, &targets, seconds)?;
            println!("nothing found, {:.1} s in all", progress.seconds());
            Ok(())
        }
        Task::Replay { target, input } => {
            let mut progress = Progress::new(PREPARING + 1);
            prepare(layout, &mut progress)?;
            progress.open_step(&format!("{target} on {}", input.display()));
            openly(&mut replay(layout, target, &input)?)
                .map_err(|failure| failure.advise("the last step above is the one that failed"))?;
            println!("it runs through");
            Ok(())
        }
    }
}

/// All targets, as a part of all tests.
pub(crate) fn all(layout: &Layout, progress: &mut Progress, seconds: u32) -> Result<(), Failure> {
    run_targets(layout, progress, &TARGETS, seconds)
}

impl Task {
    fn parse(arguments: &[String]) -> Result<Self, Failure> {
        let usage = |what: String| Failure::usage(what, "cargo xtask fuzz --help");
        let (mut target, mut seconds, mut input) = (None, None, None);
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| usage(format!("{argument} needs a value")));
            match argument.as_str() {
                "--seconds" => {
                    let parsed = value()?.parse().ok().filter(|seconds| *seconds > 0);
                    seconds = Some(parsed.ok_or_else(|| usage("--seconds takes a number above 0".to_owned()))?);
                }
                "--replay" => input = Some(PathBuf::from(value()?)),
                name => match TARGETS.into_iter().find(|target| *target == name) {
                    Some(found) if target.is_none() => target = Some(found),
                    Some(_) => return Err(usage("one target, or none for all".to_owned())),
                    None => return Err(usage(format!("there is no fuzz target `{name}`"))),
                },
            }
        }
        match (target, input, seconds) {
            (Some(target), Some(input), None) => Ok(Self::Replay { target, input }),
            (_, Some(_), _) => Err(usage("--replay takes a target and a file, and no --seconds".to_owned())),
            (target, None, seconds) => {
                let targets = target.map_or_else(|| TARGETS.to_vec(), |target| vec![target]);
                Ok(Self::Run { targets, seconds: seconds.unwrap_or(SECONDS) })
            }
        }
    }
}

fn run_targets(layout: &Layout, progress: &mut Progress, targets: &[&str], seconds: u32) -> Result<(), Failure> {
    prepare(layout, progress)?;
    for target in targets {
        progress.step(&format!("fuzzing {target} for {seconds} s"), || fuzz(layout, target, seconds))?;
    }
    if targets.contains(&"engine") {
        progress.step("fuzzing engines with a fault put in", || {
            for mutation in MUTATIONS {
                bites(layout, mutation)?;
            }
            Ok(((), Done::Note(format!("all {} found", MUTATIONS.len()))))
        })?;
    }
    Ok(())
}

fn prepare(layout: &Layout, progress: &mut Progress) -> Result<(), Failure> {
    progress.step("looking for a C++ compiler", || {
        if exists("c++") {
            return Ok(((), Done::Before));
        }
        debian::install(layout, &["g++"], "libFuzzer")?;
        Ok(((), Done::Now))
    })?;
    progress.step(&format!("installing cargo-fuzz {VERSION}"), || install(layout))?;
    progress.step("building the fuzz targets", || build(layout))
}

fn install(layout: &Layout) -> Result<((), Done), Failure> {
    let place = tools(layout);
    let installed = asked(Command::new(place.join("bin/cargo-fuzz")).arg("--version"));
    if installed.is_some_and(|version| version.ends_with(VERSION)) {
        return Ok(((), Done::Before));
    }
    let mut install = cargo(layout);
    install.args(["install", "cargo-fuzz", "--locked", "--version", VERSION, "--root"]).arg(place);
    quietly(layout, "cargo-fuzz", &mut install)?;
    Ok(((), Done::Now))
}

/// With coverage and debug assertions, without a sanitizer: that would need an unstable compiler, and our code has
/// nothing for it to find.
fn build(layout: &Layout) -> Result<((), Done), Failure> {
    let mut path = vec![tools(layout).join("bin")];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let path = std::env::join_paths(path).map_err(|error| Failure::new(format!("PATH: {error}")))?;
    let mut build = cargo(layout);
    build.env("PATH", path).args(["fuzz", "build", "--fuzz-dir", "tests/fuzz", "--sanitizer", "none", "--target-dir"]);
    quietly(layout, "fuzz-build", build.arg(layout.target().join("fuzz")))?;
    Ok(((), Done::Now))
}

/// Runs a target. What it finds is kept, and told with the command that shows it again.
fn fuzz(layout: &Layout, target: &str, seconds: u32) -> Result<((), Done), Failure> {
    let (corpus, found) = (corpus(layout, target)?, made(layout.parts().join("fuzz/found"))?);
    let before = files(&found);
    let mut run = program(layout, target)?;
    run.env("TURNSTILE_FUZZ_SEEDS", &corpus).arg(format!("-artifact_prefix={}/{target}-", found.display()));
    run.args([format!("-max_total_time={seconds}"), format!("-timeout={INPUT_SECONDS_MAX}")]);
    let name = format!("fuzz-{target}");
    match quietly(layout, &name, bounded(&mut run).arg(&corpus)) {
        Ok(()) => Ok(((), Done::Note(runs(layout, &name)))),
        Err(failure) => match files(&found).into_iter().find(|file| !before.contains(file)) {
            Some(input) => Err(find(layout, target, &input)),
            None => Err(failure),
        },
    }
}

fn find(layout: &Layout, target: &str, input: &Path) -> Failure {
    let name = format!("fuzz-{target}-found");
    let told = match replay(layout, target, input).and_then(|mut replay| quietly(layout, &name, &mut replay)) {
        Ok(()) => Failure::new(format!("{target} failed on an input, but not when it was run again")),
        Err(failure) => failure,
    };
    let input = layout.short(input);
    told.advise(format!("`cargo xtask fuzz {target} --replay {input}` shows it again, step by step"))
}

/// The command that runs a target on one input, and tells every step.
fn replay(layout: &Layout, target: &str, input: &Path) -> Result<Command, Failure> {
    let mut replay = program(layout, target)?;
    replay.env("TURNSTILE_FUZZ_TELL", "1").env("RUST_BACKTRACE", "0").arg(input);
    Ok(replay)
}

/// The engine's target must fail on an engine with this fault.
fn bites(layout: &Layout, mutation: &str) -> Result<(), Failure> {
    let mut run = program(layout, "engine")?;
    let corpus = corpus(layout, "engine")?;
    // What it adds to the corpus, and the input that it fails on, are of no use later.
    let aside = made(layout.parts().join("fuzz/mutated"))?;
    run.env("TURNSTILE_FUZZ_MUTATION", mutation).env("RUST_BACKTRACE", "0");
    run.arg(format!("-artifact_prefix={}/", aside.display())).arg(format!("-max_total_time={MUTATION_SECONDS}"));
    let command = bounded(&mut run).arg(&aside).arg(&corpus);
    let name = format!("fuzz-{mutation}");
    let passed = quietly(layout, &name, command).is_ok();
    fs::remove_dir_all(&aside).map_err(Failure::io(format!("removing {}", aside.display())))?;
    let log = log(layout, &name);
    if passed || !log.contains("panicked at") {
        let command = shown(command);
        return Err(Failure::new(format!("the engine's fuzz target misses the fault {mutation}"))
            .advise(format!("`{command}` must fail: is the rule checked that it breaks? (tests/fuzz/src/model.rs)")));
    }
    Ok(())
}

fn bounded(command: &mut Command) -> &mut Command {
    command.arg(format!("-max_len={INPUT_BYTES_MAX}")).arg("-print_final_stats=1")
}

/// A target as cargo-fuzz built it.
fn program(layout: &Layout, target: &str) -> Result<Command, Failure> {
    // Named after the machine, which is the one directory there with programs in it.
    let builds = layout.target().join("fuzz");
    let places = builds.read_dir().map_err(Failure::io(format!("reading {}", builds.display())))?;
    let mut places = places.flatten().map(|place| place.path().join("release").join(target));
    let program = places.find(|program| program.is_file());
    program.map(Command::new).ok_or_else(|| Failure::new(format!("cargo-fuzz built no {target}")))
}

/// The inputs of a target that lead to new places, kept from run to run.
fn corpus(layout: &Layout, target: &str) -> Result<PathBuf, Failure> {
    made(layout.parts().join("fuzz/corpus").join(target))
}

fn tools(layout: &Layout) -> PathBuf {
    layout.parts().join("tools")
}

fn made(directory: PathBuf) -> Result<PathBuf, Failure> {
    fs::create_dir_all(&directory).map_err(Failure::io(format!("creating {}", directory.display())))?;
    Ok(directory)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    directory.read_dir().into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn log(layout: &Layout, name: &str) -> String {
    let bytes = fs::read(layout.logs().join(format!("{name}.log"))).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// How many inputs a run tried, in its own words.
fn runs(layout: &Layout, name: &str) -> String {
    let log = log(layout, name);
    let done = log.lines().rev().find_map(|line| line.strip_prefix("Done ")?.split_once(" in "));
    done.map_or_else(|| "done".to_owned(), |(runs, _)| runs.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Task, String> {
        let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Task::parse(&arguments).map_err(|failure| failure.to_string())
    }

    #[test]
    fn without_arguments_all_targets_run() {
        assert_eq!(parse(""), Ok(Task::Run { targets: TARGETS.to_vec(), seconds: SECONDS }));
        assert_eq!(parse("--seconds 5 rules"), Ok(Task::Run { targets: vec!["rules"], seconds: 5 }));
        let input = PathBuf::from("x");
        assert_eq!(parse("engine --replay x"), Ok(Task::Replay { target: "engine", input }));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in
            ["engines", "rules engine", "--seconds", "--seconds 0", "--replay x", "rules --replay x --seconds 1"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
