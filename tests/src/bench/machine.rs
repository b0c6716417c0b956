//! The machine that a bench ran on, and how quiet it was.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use super::Fault;

/// What figures depend on besides the code.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The kernel's release.
    pub kernel: String,
    /// The processor's own name.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// What one durable write of 4 KiB takes where the databases lie, in microseconds (median of 50).
    pub durable_write_us: u64,
}

impl Machine {
    /// Looks at this machine; databases will lie in `dir`.
    ///
    /// # Errors
    /// If no file can be written in `dir`.
    pub fn look(dir: &Path) -> Result<Self, Fault> {
        let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let path = dir.join(format!("durable-{}", std::process::id()));
        let durable_write_us = durable_write_us(&path).map_err(|error| Fault::File(path, error))?;
        Ok(Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            processor: processor.map_or("unknown", |(_, name)| name).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            durable_write_us,
        })
    }
}

fn durable_write_us(path: &Path) -> std::io::Result<u64> {
    let mut file = File::create(path)?;
    let mut took = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        file.write_all(&[0x5a; 4096])?;
        file.sync_all()?;
        took.push(start.elapsed());
    }
    fs::remove_file(path)?;
    took.sort();
    Ok(u64::try_from(took[took.len() / 2].as_micros()).unwrap_or(u64::MAX))
}

/// The first line that `program arguments` prints.
pub fn first_line(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or("unknown").trim().to_owned()
}

/// CPU that all processes of the machine used since it started, without what interrupts took.
pub fn busy() -> Duration {
    let stat = fs::read_to_string("/proc/stat").expect("the kernel tells its use of CPU");
    let line = stat.lines().next().expect("the sum over all cores comes first");
    // cpu user nice system idle ...
    let ticks = line.split_ascii_whitespace().skip(1).take(3).map(number).sum();
    in_ticks(ticks)
}

/// CPU that children of this process used which have ended: the load generator's.
pub fn ended_children() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("this process runs");
    let (_, fields) = stat.rsplit_once(") ").expect("the name is in parentheses");
    // Fields 16 and 17 (cutime, cstime) of proc(5); the first after the name is field 3.
    in_ticks(fields.split_ascii_whitespace().skip(13).take(2).map(number).sum())
}

/// A time that the kernel tells in its clock ticks.
pub fn in_ticks(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// The cores that this thread may use.
///
/// # Errors
/// If there are less than two: one for the load, and one for what is loaded.
pub fn two_cores() -> Result<[usize; 2], Fault> {
    let allowed = sched_getaffinity(None).unwrap_or_default();
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let two = cores.next().zip(cores.next()).map(|(first, second)| [first, second]);
    two.ok_or_else(|| Fault::Machine("two cores are needed, one for the load and one for what is loaded".to_owned()))
}

/// Keeps this thread on one core until it is dropped.
pub struct Pinned {
    before: CpuSet,
}

impl Pinned {
    /// From now on.
    ///
    /// # Errors
    /// If the core is not ours to use.
    pub fn to(core: usize) -> Result<Self, Fault> {
        let refused = |_| Fault::Machine(format!("this thread cannot be kept on core {core}"));
        let before = sched_getaffinity(None).map_err(refused)?;
        let mut one = CpuSet::new();
        one.set(core);
        sched_setaffinity(None, &one).map_err(refused)?;
        Ok(Self { before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Nothing depends on it any more if it fails.
        let _ = sched_setaffinity(None, &self.before);
    }
}

fn number(text: &str) -> u64 {
    text.parse().expect("the kernel writes numbers")
}
