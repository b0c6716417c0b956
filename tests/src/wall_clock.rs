//! A wall clock that jumps for one process alone.
//!
//! A time namespace moves only the clocks that count from the start of the machine, and the machine's own wall clock
//! belongs to everybody. So a small library goes between the process and its C library. What asks the kernel directly
//! is not moved; in the host that is only its CLOCK_BOOTTIME.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/wall_clock.c");

/// The wall clock of the processes that are started with its [`WallClock::environment`].
pub struct WallClock {
    dir: TempDir,
}

impl WallClock {
    /// A clock that is right.
    ///
    /// # Panics
    /// If the library cannot be built; that takes the C compiler that the embedded SQLite is built with.
    pub fn right() -> Self {
        let clock = Self { dir: tempfile::tempdir().expect("a temporary directory can be made") };
        clock.jump(0);
        let mut build = Command::new("cc");
        build.args(["-shared", "-fPIC", "-O1", "-o"]).arg(clock.library()).args([SOURCE, "-ldl"]);
        let output = build.output().expect("cc is there, as the embedded SQLite needs it");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        clock
    }

    /// Sets it to this many seconds before (negative) or after the right time.
    ///
    /// # Panics
    /// If that cannot be written down.
    pub fn jump(&self, seconds: i64) {
        // The process must never read half a number.
        let new = self.dir.path().join("new");
        fs::write(&new, seconds.to_string()).expect("a file can be written");
        fs::rename(new, self.shift()).expect("a file can be renamed");
    }

    /// Variables for the process.
    pub fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        vec![("LD_PRELOAD", self.library()), ("TURNSTILE_WALL_CLOCK", self.shift())]
    }

    fn library(&self) -> PathBuf {
        self.dir.path().join("wall_clock.so")
    }

    fn shift(&self) -> PathBuf {
        self.dir.path().join("shift")
    }
}
