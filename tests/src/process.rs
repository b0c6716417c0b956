//! Child processes that cannot outlive the tests, whatever happens to the tests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::{PATIENCE, until};

/// A running component. Killed when dropped, and by the kernel when the test process dies; what it wrote goes to a
/// file, whose end is shown when a test fails.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program`; its standard output and error are appended to `log`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(name: &str, program: &Path, args: &[String], log: &Path) -> Self {
        let output = File::options().create(true).append(true).open(log).expect("the log can be written");
        // setpriv (util-linux) asks the kernel to kill the component with its parent, and becomes the component.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(args);
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a file can be shared")).stderr(output);
        let child = spawn(command).unwrap_or_else(|error| panic!("cannot start {name} with setpriv: {error}"));
        Self { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// Sends a signal; nothing happens if the process has ended.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(self.pid(), signal);
    }

    /// Kills it at once, as a power failure would, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops it in the middle of whatever it does, and waits until every thread stands still.
    pub async fn freeze(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        until("all threads to stop", PATIENCE, async || {
            let mut tasks = fs::read_dir(&tasks).ok()?;
            tasks.all(|task| task.is_ok_and(|task| is_stopped(&task.path()))).then_some(())
        })
        .await;
    }

    /// As [`Process::freeze`], but at a moment when it has no file locked for writing: what a frozen process has locked
    /// stays locked for all others.
    pub async fn freeze_without_file_locks(&self) {
        let writes = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.contains(&"POSIX")
                && fields.contains(&"WRITE")
                && fields.contains(&self.child.id().to_string().as_str())
        };
        until("a moment without file locks", PATIENCE, async || {
            self.freeze().await;
            let locks = fs::read_to_string("/proc/locks").expect("Linux lists file locks");
            let free = !locks.lines().any(writes);
            if !free {
                self.thaw();
            }
            free.then_some(())
        })
        .await;
    }

    /// Lets a frozen process go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// If it does not within `patience`.
    pub async fn ended(&mut self, patience: Duration) -> ExitStatus {
        let what = format!("{} to end", self.name);
        until(&what, patience, async || self.child.try_wait().ok().flatten()).await
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has a resident set");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("VmRSS is a number of kB");
        kib * 1024
    }

    /// CPU that it used so far, in user mode and in the kernel for it.
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("the process runs");
        let (_, fields) = stat.rsplit_once(") ").expect("the name is in parentheses");
        // Fields 14 and 15 (utime, stime) of proc(5); the first after the name is field 3.
        let ticks: u64 = fields
            .split_ascii_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().expect("times are numbers of ticks"))
            .sum();
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// What it wrote so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let output = self.output();
            let lines: Vec<&str> = output.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            eprintln!("---- the end of what {} wrote ----\n{}\n----", self.name, tail.join("\n"));
        }
    }
}

fn is_stopped(task: &Path) -> bool {
    let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

type Order = (Command, mpsc::Sender<std::io::Result<Child>>);

/// The kernel's "parent" is the *thread* that started the child; test threads end with their test and runtime threads
/// when they are idle, so one thread that never ends starts everything.
static SPAWNER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
    let (orders, received) = mpsc::channel::<Order>();
    std::thread::spawn(move || {
        for (mut command, reply) in received {
            let _ = reply.send(command.spawn());
        }
    });
    orders
});

fn spawn(command: Command) -> std::io::Result<Child> {
    let (reply, answer) = mpsc::channel();
    SPAWNER.send((command, reply)).expect("the spawning thread never ends");
    answer.recv().expect("the spawning thread answers")
}
