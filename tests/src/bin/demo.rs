//! The demo, as `cargo xtask demo` runs it; see `turnstile_tests::demo`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use turnstile_tests::artifacts;
use turnstile_tests::demo::options::Options;
use turnstile_tests::demo::show::{Programs, Stage, time_limit};
use turnstile_tests::demo::stop::Stop;

// One thread: the kernel ends the children when the thread that started them ends, and that must be this one.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(fault) => {
            eprintln!("{fault}; see `cargo xtask demo --help`");
            return ExitCode::from(64);
        }
    };
    let mut stop = match Stop::listen() {
        Ok(stop) => stop,
        Err(error) => return failed(&error),
    };
    run(&options, &mut stop).await.unwrap_or_else(|error| failed(&error))
}

async fn run(options: &Options, stop: &mut Stop) -> io::Result<ExitCode> {
    let directory = std::env::var_os("TURNSTILE_DEMO_DIR")
        .map_or_else(|| std::env::temp_dir().join("turnstile-demo"), PathBuf::from);
    let _lock = empty(&directory)?;
    let bank = std::env::current_exe()?.with_file_name("legacy-bank");
    let programs = Programs { envoy: artifacts::envoy(), turnstile: artifacts::turnstile_bin(), bank };
    let stage = tokio::select! {
        // What was started already is killed when the half-built stage is dropped.
        () = stop.asked() => return Ok(stopped()),
        stage = Stage::set_up(options, &programs, &directory) => stage?,
    };
    let result = tokio::select! {
        () = stop.asked() => Ok(stopped()),
        result = play(options, &stage) => result,
    };
    if options.keep && result.is_ok() {
        println!("{}", stage.commands());
        stop.asked().await;
        println!("\nstopping");
    }
    stage.tear_down().await;
    result
}

/// Sends the bursts and tells what came of them.
async fn play(options: &Options, stage: &Stage) -> io::Result<ExitCode> {
    let limit = time_limit(options);
    let with_logs = |what: String| io::Error::other(format!("{what}\nlogs:\n{}", stage.logs()));
    let report = match tokio::time::timeout(limit, stage.play(options)).await {
        Ok(played) => played.map_err(|error| with_logs(error.to_string()))?,
        Err(_) => return Err(with_logs(format!("the bursts are stuck after {limit:?}"))),
    };
    println!("\n{}", report.table());
    let faults = report.faults();
    if faults.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("this is not what the demo is to show:\n  {}\nlogs:\n{}", faults.join("\n  "), stage.logs());
    Ok(ExitCode::FAILURE)
}

fn stopped() -> ExitCode {
    println!("\nstopped");
    ExitCode::from(130)
}

fn failed(error: &io::Error) -> ExitCode {
    eprintln!("the demo could not be run: {error}");
    ExitCode::FAILURE
}

/// Empties the demo's directory, unless another demo is at work there.
fn empty(directory: &Path) -> io::Result<File> {
    fs::create_dir_all(directory)?;
    let place = directory.display();
    let lock = File::create(directory.with_extension("lock"))?;
    lock.try_lock().map_err(|error| io::Error::other(format!("another demo seems to run in {place}: {error}")))?;
    fs::remove_dir_all(directory)?;
    fs::create_dir_all(directory)?;
    Ok(lock)
}
