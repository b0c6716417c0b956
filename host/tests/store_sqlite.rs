//! The SQLite store: the conformance suite, and what only a database file can do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod conformance;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use conformance::{Harness, conformance};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use turnstile_host::store::sqlite::{Config, SqliteStore};
use turnstile_host::store::{Event, Store};

const LEASE_TTL: Duration = Duration::from_millis(800);
/// Names the database for a child process of this test binary.
const CHILD_PATH: &str = "TURNSTILE_TEST_DATABASE";

/// One database file in a directory of its own.
struct File {
    directory: TempDir,
    epoch_base: u64,
}

fn file() -> File {
    File { directory: tempfile::tempdir().unwrap(), epoch_base: 0 }
}

impl File {
    fn path(&self) -> PathBuf {
        self.directory.path().join("turnstile.db")
    }

    fn config(&self) -> Config {
        Config { path: self.path(), lease_ttl: LEASE_TTL, epoch_base: self.epoch_base }
    }
}

impl Harness for File {
    fn lease_ttl(&self) -> Duration {
        LEASE_TTL
    }

    async fn open(&self) -> (Arc<dyn Store>, UnboundedReceiver<Event>) {
        let (sender, events) = unbounded_channel();
        (Arc::new(SqliteStore::open(self.config(), sender).unwrap()), events)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child_process", "--ignored", "--nocapture"]).env(CHILD_PATH, self.path());
        command
    }
}

/// Not a test: what [`File::command`] starts.
#[test]
#[ignore = "the body of the child processes that other tests start"]
fn child_process() {
    let path = std::env::var_os(CHILD_PATH).expect("only started by other tests");
    let (sender, events) = unbounded_channel();
    let store = SqliteStore::open(Config { path: path.into(), lease_ttl: LEASE_TTL, epoch_base: 0 }, sender).unwrap();
    conformance::process::serve(&store, events);
}

conformance!(file);
