//! The lock engine.

use crate::{Command, Config, Input, Instant};

/// The lock table of one incarnation.
pub struct Engine {
    config: Config,
}

impl Engine {
    /// An engine that owns nothing and has no lease.
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    /// Takes one input. `now` never goes back.
    pub fn handle(&mut self, now: Instant, input: Input) {
        let _ = (now, input, &self.config);
    }

    /// Acts on the deadlines that have come.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// stub
    pub fn fault(&self) -> Option<String> { None }

    /// The next command to carry out.
    pub fn poll_command(&mut self) -> Option<Command> {
        None
    }

    /// When [`Engine::handle_timeout`] must be called at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        None
    }
}
