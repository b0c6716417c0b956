//! What must never happen. A fault stops the engine for good; the driver then stops the host.

use core::fmt;

use crate::{Epoch, LockKey, SessionId};

/// Why the engine stopped. From then on it takes no input and gives no command, so nothing more is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Two tables of the engine disagree.
    Broken(&'static str),
    /// The store gave an epoch that is not larger than an earlier one of the key: tokens would repeat (I2).
    EpochWentBack {
        /// Of which key.
        key: LockKey,
        /// What the store gave.
        epoch: Epoch,
    },
    /// The next token of the key is not larger than its last one (I2).
    TokenWentBack(LockKey),
    /// A session's time is over while a promise to its client still runs (I3).
    PromiseOutlivesSession(SessionId),
    /// The driver opened a session under the name of another one.
    SessionOpenedTwice(SessionId),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(what) => write!(f, "the lock table is broken: {what}"),
            Self::EpochWentBack { key, epoch } => {
                write!(f, "the store gave {key} the epoch {}, which is not larger than an earlier one", epoch.0)
            }
            Self::TokenWentBack(key) => write!(f, "the next token of {key} is not larger than its last one"),
            Self::PromiseOutlivesSession(session) => {
                write!(f, "session {:016x} is over while a promise to it still runs", session.0)
            }
            Self::SessionOpenedTwice(session) => write!(f, "session {:016x} was opened twice", session.0),
        }
    }
}

impl core::error::Error for Fault {}

/// The outcome of a step inside the engine.
pub(crate) type Step<T = ()> = Result<T, Fault>;
