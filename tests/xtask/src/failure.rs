//! Why a task stopped, told so that a person knows what to do next.

use std::fmt;

/// A failed step: what failed, what its command said last, and what to do about it.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    tail: Option<String>,
    advice: Option<String>,
    usage: bool,
}

impl Failure {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), tail: None, advice: None, usage: false }
    }

    /// The command line was wrong; `help` is the command that explains it.
    pub(crate) fn usage(what: impl Into<String>, help: &str) -> Self {
        Self { usage: true, ..Self::new(what).advise(format!("see `{help}`")) }
    }

    /// Adds what to install or do.
    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// Adds the last lines of the failed command's output.
    pub(crate) fn tail(mut self, tail: impl Into<String>) -> Self {
        self.tail = Some(tail.into());
        self
    }

    pub(crate) fn exit_code(&self) -> u8 {
        if self.usage { 64 } else { 1 }
    }

    pub(crate) fn io(doing: impl fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.to_string();
        move |error| Self::new(format!("{doing}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        if let Some(tail) = &self.tail {
            write!(f, "\n  its last lines:")?;
            for line in tail.lines() {
                write!(f, "\n  | {line}")?;
            }
        }
        if let Some(advice) = &self.advice {
            write!(f, "\nwhat to do: {advice}")?;
        }
        Ok(())
    }
}
