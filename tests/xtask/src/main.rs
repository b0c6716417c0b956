//! The one entry point for people who work on Turnstile: `cargo xtask demo | test | fuzz | check | fix | bench | setup`.
//!
//! It fetches what a bare machine lacks, builds the parts in the right order, and says what it does. It has no
//! dependencies, because it is what such a machine compiles first.

mod bench;
mod check;
mod command;
mod debian;
mod demo;
mod envoy;
mod etcd;
mod failure;
mod fuzz;
mod help;
mod host;
mod layout;
mod plugin;
mod progress;
mod protoc;
mod test;
mod tidy;
mod wasm;

use std::process::ExitCode;

use failure::Failure;
use help::Topic;
use layout::Layout;

/// What a person asked for.
enum Task {
    Setup,
    BuildPlugin,
    Demo(Vec<String>),
    Test(Vec<String>),
    Fuzz(Vec<String>),
    Check,
    Fix,
    BenchOverhead(Vec<String>),
    BenchEngine(Vec<String>),
    BenchEtcd(Vec<String>),
    Help(Topic),
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1).collect()).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("\n{failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn parse(arguments: Vec<String>) -> Result<Task, Failure> {
    let mut arguments = arguments.into_iter();
    let Some(name) = arguments.next() else {
        return Ok(Task::Help(Topic::Overview));
    };
    let rest: Vec<String> = arguments.collect();
    // What stands behind `--` belongs to the program that is run.
    let asks_help =
        rest.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--help" || argument == "-h");
    let topic = match name.as_str() {
        "help" | "--help" | "-h" => {
            return Ok(Task::Help(rest.first().map_or(Topic::Overview, |name| Topic::of(name))));
        }
        name => Topic::of(name),
    };
    if asks_help {
        return Ok(Task::Help(topic));
    }
    match name.as_str() {
        "setup" => none_left(rest, Task::Setup),
        "build-plugin" => none_left(rest, Task::BuildPlugin),
        "demo" => Ok(Task::Demo(rest)),
        "test" => Ok(Task::Test(rest)),
        "fuzz" => Ok(Task::Fuzz(rest)),
        "check" => none_left(rest, Task::Check),
        "fix" => none_left(rest, Task::Fix),
        "bench" => match rest.split_first() {
            None => Ok(Task::BenchOverhead(Vec::new())),
            Some((which, rest)) if which == "overhead" => Ok(Task::BenchOverhead(rest.to_vec())),
            Some((which, rest)) if which == "engine" => Ok(Task::BenchEngine(rest.to_vec())),
            Some((which, rest)) if which == "etcd" => Ok(Task::BenchEtcd(rest.to_vec())),
            Some((which, _)) => Err(Failure::usage(format!("there is no bench `{which}`"), "cargo xtask bench --help")),
        },
        other => Err(Failure::usage(format!("there is no task `{other}`"), "cargo xtask --help")),
    }
}

fn none_left(rest: Vec<String>, task: Task) -> Result<Task, Failure> {
    match rest.first() {
        None => Ok(task),
        Some(argument) => Err(Failure::usage(format!("this task takes no `{argument}`"), "cargo xtask --help")),
    }
}

fn run(task: Task) -> Result<(), Failure> {
    if let Task::Help(topic) = task {
        print!("{}", topic.text());
        return Ok(());
    }
    let layout = Layout::find()?;
    match task {
        Task::Setup => plugin::setup(&layout),
        Task::BuildPlugin => plugin::build_only(&layout),
        Task::Demo(arguments) => demo::run(&layout, &arguments),
        Task::Test(arguments) => test::run(&layout, &arguments),
        Task::Fuzz(arguments) => fuzz::run(&layout, &arguments),
        Task::Check => check::run(&layout),
        Task::Fix => check::fix(&layout),
        Task::BenchOverhead(arguments) => bench::overhead(&layout, &arguments),
        Task::BenchEngine(arguments) => bench::engine(&layout, &arguments),
        Task::BenchEtcd(arguments) => bench::etcd(&layout, &arguments),
        Task::Help(_) => Ok(()),
    }
}
