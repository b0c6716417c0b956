//! Starts the programs of the demo, waits until they answer, and stops them, whatever happens.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use crate::http::Ask;

/// How long a program may take until it answers.
const READY_MAX: Duration = Duration::from_secs(20);
/// Between two looks whether it does.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a program may take to end by itself.
const STOP_MAX: Duration = Duration::from_secs(10);
/// Lines of a log that are shown.
const TAIL_LINES: usize = 20;

/// A running program with a log. Dropping it kills it and all its children.
pub struct Process {
    name: &'static str,
    child: Child,
    group: Pid,
    log: PathBuf,
}

impl Process {
    /// Starts `program`; its output goes to `<name>.log` in `directory`.
    pub fn start(name: &'static str, directory: &Path, program: &Path, arguments: &[String]) -> io::Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let output = File::create(&log)?;
        // A group of its own, so that Ctrl-C reaches only us, and its children end with it. Should we be killed, setpriv
        // has asked the kernel to end it.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(program)
            .args(arguments)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("starting {} by setpriv (of util-linux): {error}", program.display()),
                )
            })?;
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let group = id.ok_or_else(|| io::Error::other(format!("{name} ended at once")))?;
        Ok(Self { name, child, group, log })
    }

    /// Waits until a GET of `path` at `address` is answered with 200.
    pub async fn ready(&mut self, address: SocketAddr, path: &str) -> io::Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(self.failed(&format!("ended with {status} before it was ready")));
            }
            match Ask::get(path).send(address).await {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(_) | Err(_) if start.elapsed() < READY_MAX => tokio::time::sleep(LOOK_EVERY).await,
                Ok(answer) => {
                    let text = String::from_utf8_lossy(&answer.body).into_owned();
                    let what = format!("answered {path} with {} for {READY_MAX:?}: {}", answer.status, text.trim());
                    return Err(self.failed(&what));
                }
                Err(error) => return Err(self.failed(&format!("did not answer for {READY_MAX:?}: {error}"))),
            }
        }
    }

    /// Waits until the log has a line that starts with `prefix`, and gives the rest of it.
    pub async fn says(&mut self, prefix: &str) -> io::Result<String> {
        let start = Instant::now();
        loop {
            let text = std::fs::read_to_string(&self.log)?;
            let whole = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or(""));
            if let Some(rest) = whole.lines().find_map(|line| line.strip_prefix(prefix)) {
                return Ok(rest.to_owned());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(self.failed(&format!("ended with {status}")));
            }
            if start.elapsed() >= READY_MAX {
                return Err(self.failed(&format!("did not say `{prefix}` for {READY_MAX:?}")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Where its output is.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Asks it to end, and makes it end if it does not.
    pub async fn stop(mut self) {
        // Errors mean that it is gone already.
        let _ = kill_process_group(self.group, Signal::TERM);
        let _ = tokio::time::timeout(STOP_MAX, self.child.wait()).await;
    }

    /// The end of its log, indented.
    pub fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default();
        last.iter().map(|line| format!("  | {line}\n")).collect()
    }

    fn failed(&self, what: &str) -> io::Error {
        io::Error::other(format!(
            "{} {what}\n  its log, {}, ends with:\n{}",
            self.name,
            self.log.display(),
            self.tail()
        ))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Children may outlive the one we started; the group has them all. An error means that it is empty.
        let _ = kill_process_group(self.group, Signal::KILL);
    }
}
