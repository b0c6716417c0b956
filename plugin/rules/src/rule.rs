//! A rule: what it guards, and how its lock is held.

use std::time::Duration;

/// One rule.
#[derive(Debug)]
pub struct Rule {
    name: String,
    wait: Duration,
    hold: Duration,
    lock_delay: Duration,
    on_lost: OnLost,
    on_host_unavailable: OnHostUnavailable,
}

/// What happens to a request whose lock is lost while the upstream works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnLost {
    /// It is aborted before another request is let in.
    #[default]
    Abort,
    /// It goes on, although another request may be let in.
    Continue,
}

/// What happens to a request when no host answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnHostUnavailable {
    /// It is rejected.
    #[default]
    Deny,
    /// It goes to the upstream without a lock.
    Allow,
}

impl Rule {
    /// Unique among the rules of a set: the configured name, or else what the rule matches.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long a request waits for the lock, at most 10 minutes; zero is "try".
    pub fn wait(&self) -> Duration {
        self.wait
    }

    /// The longest hold: above zero, at most 1 hour.
    pub fn hold(&self) -> Duration {
        self.hold
    }

    /// Quarantine of the key after a hold that ended uncleanly, at most 1 hour.
    pub fn lock_delay(&self) -> Duration {
        self.lock_delay
    }

    /// What happens when the lock is lost.
    pub fn on_lost(&self) -> OnLost {
        self.on_lost
    }

    /// What happens when no host answers.
    pub fn on_host_unavailable(&self) -> OnHostUnavailable {
        self.on_host_unavailable
    }
}
