//! Benches: what the filter and the host cost, measured beside other ways of asking somebody before each request; and
//! how fast the engine is.

pub mod authz;
pub mod engine;
pub mod etcd;
pub mod figures;
pub mod machine;
pub mod overhead;
pub mod program;
pub mod report;
pub mod rig;
pub mod row;
pub mod session_load;
pub mod wrk;

use std::path::PathBuf;

/// Why a bench has no result.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// An argument is not understood.
    #[error("{0} (--help tells more)")]
    Argument(String),
    /// The load generator could not run.
    #[error("wrk: {0}")]
    Wrk(String),
    /// Requests failed, so the figures would be those of something else.
    #[error("{row}, {phase}: {failures}")]
    Load {
        /// Which row of the table.
        row: &'static str,
        /// Warm-up, or with how many connections.
        phase: String,
        /// What wrk says.
        failures: String,
    },
    /// The filter of a row did not do its work for every request.
    #[error("{row}: {what} is {got}, expected {expected}: the filter did not do what this row is to measure")]
    Idle {
        /// Which row of the table.
        row: &'static str,
        /// Envoy's statistic.
        what: String,
        /// Its value.
        got: String,
        /// What it ought to be.
        expected: String,
    },
    /// A session ended, or was answered with something else than a grant.
    #[error("{row}: {fault}")]
    Session {
        /// Which row of the table.
        row: &'static str,
        /// What came.
        fault: String,
    },
    /// This machine will not do.
    #[error("{0}")]
    Machine(String),
    /// A file could not be read or written.
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    /// The wasm filter that does nothing is not what it should be.
    #[error("noop.wat: {0}")]
    Noop(#[from] wat::Error),
}
