//! The load generator wrk: started for one window, its figures read.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;

use super::Fault;
use super::row::{REPEATED_KEYS, Row};

/// The program that makes the requests, run by wrk.
const SCRIPT: &str = include_str!("overhead.lua");

/// wrk, and where its script lies.
pub struct Wrk {
    script: PathBuf,
}

/// One window of load.
#[derive(Clone, Debug)]
pub struct Window {
    /// Connections, each with one request at a time.
    pub connections: u32,
    /// How long.
    pub length: Duration,
    /// Differs between all windows of a run: the seed of the choice, or the part of fresh keys that is not counted up.
    pub number: u32,
}

/// What wrk counted.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Figures {
    /// Requests answered.
    pub requests: u64,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// Median latency, in microseconds.
    pub p50_us: u64,
    /// The latency that 1 % of the requests exceeded, in microseconds.
    pub p99_us: u64,
    failed_connect: u64,
    failed_read: u64,
    failed_write: u64,
    failed_timeout: u64,
    failed_status: u64,
}

impl Wrk {
    /// Lays the script into `dir`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new(dir: &Path) -> Result<Self, Fault> {
        let script = dir.join("overhead.lua");
        fs::write(&script, SCRIPT).map_err(|error| Fault::File(script.clone(), error))?;
        Ok(Self { script })
    }

    /// Its version, as it names itself.
    ///
    /// # Errors
    /// If there is no wrk.
    pub fn version() -> Result<String, Fault> {
        // It prints its usage too, and ends with 1.
        let output = Command::new("wrk").arg("--version").output().map_err(|error| not_started(&error))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().next().unwrap_or_default();
        Ok(line.split(" Copyright").next().unwrap_or(line).trim().to_owned())
    }

    /// Loads the route for one window, with the keys of `row`; returns when it is over.
    ///
    /// # Errors
    /// If wrk could not run, or one request was not answered with success.
    pub fn run(&self, row: Row, to: SocketAddr, window: &Window) -> Result<Figures, Fault> {
        let mut command = Command::new("wrk");
        command.args(["--threads", "1", "--connections", &window.connections.to_string()]);
        command.args(["--duration", &format!("{}s", window.length.as_secs()), "--timeout", "10s"]);
        command.arg("--script").arg(&self.script).arg(format!("http://{to}")).arg("--");
        match row {
            Row::FreshKeys => command.args(["fresh".to_owned(), format!("w{}", window.number)]),
            _ => command.args(["repeated".to_owned(), window.number.to_string(), REPEATED_KEYS.to_string()]),
        };
        let output = command.stdin(Stdio::null()).output().map_err(|error| not_started(&error))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let figures = text
            .lines()
            .find_map(|line| line.strip_prefix("FIGURES "))
            .and_then(|line| serde_json::from_str::<Figures>(line).ok());
        let Some(figures) = figures else {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Fault::Wrk(format!("no figures; it wrote: {}{}", text.trim(), errors.trim())));
        };
        figures.without_failures(row, window)
    }
}

impl Figures {
    fn without_failures(self, row: Row, window: &Window) -> Result<Self, Fault> {
        let kinds = [
            (self.failed_status, "not answered with success"),
            (self.failed_connect, "connections refused"),
            (self.failed_read, "read errors"),
            (self.failed_write, "write errors"),
            (self.failed_timeout, "timeouts"),
        ];
        let failures: Vec<String> =
            kinds.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        if failures.is_empty() && self.requests > 0 {
            return Ok(self);
        }
        let failures = match failures.as_slice() {
            [] => "no request was answered".to_owned(),
            some => format!("{} requests answered; {}", self.requests, some.join(", ")),
        };
        Err(Fault::Load { row: row.title(), phase: format!("{} connections", window.connections), failures })
    }
}

fn not_started(error: &std::io::Error) -> Fault {
    Fault::Wrk(format!("could not be started ({error}); `cargo xtask bench overhead` installs it"))
}
