//! Shows a person which step runs, how many there are, and how long each took.

use std::io::Write;
use std::time::Instant;

use crate::failure::Failure;

/// Numbers the steps of a task.
pub(crate) struct Progress {
    steps: usize,
    begun: usize,
    started: Instant,
}

/// What a step found or did.
pub(crate) enum Done {
    /// It had something to do.
    Now,
    /// Everything was there already.
    Before,
    /// It had something to do, and there is something to tell.
    Note(String),
}

impl Progress {
    pub(crate) fn new(steps: usize) -> Self {
        Self { steps, begun: 0, started: Instant::now() }
    }

    /// Runs one step whose output is not shown.
    pub(crate) fn step<T>(
        &mut self,
        title: &str,
        work: impl FnOnce() -> Result<(T, Done), Failure>,
    ) -> Result<T, Failure> {
        self.begun += 1;
        print!("[{}/{}] {title} ... ", self.begun, self.steps);
        // A person waits for this line; if stdout is gone there is nobody to tell.
        let _ = std::io::stdout().flush();
        let start = Instant::now();
        match work() {
            Ok((value, done)) => {
                let seconds = start.elapsed().as_secs_f64();
                match done {
                    Done::Now => println!("{seconds:.1} s"),
                    Done::Before => println!("{seconds:.1} s (nothing to do)"),
                    Done::Note(note) => println!("{seconds:.1} s ({note})"),
                }
                Ok(value)
            }
            Err(failure) => {
                println!("failed after {:.1} s", start.elapsed().as_secs_f64());
                Err(failure)
            }
        }
    }

    /// Announces a step that shows its own output.
    pub(crate) fn open_step(&mut self, title: &str) {
        self.begun += 1;
        println!("[{}/{}] {title}", self.begun, self.steps);
    }

    /// How long the whole task has taken.
    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}
