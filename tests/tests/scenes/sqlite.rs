//! Two hosts on one SQLite file. (A host that is frozen past its lease there, with a proxy for each host: `e2e`.)

use turnstile_tests::scene::Script;

use crate::plays;

/// Breaks if a dead host's keys are given out too early, or never, or if nobody goes back to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_killed() {
    plays::killed_with_short_work(Script::new("SQLite: host killed, short work")).await;
}

/// Breaks if a drain cuts somebody off, or if what a host leaves has to be waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_hosts_are_restarted_in_turn() {
    plays::rolling_restart(Script::new("SQLite: rolling restart")).await;
}

/// Breaks if a host keeps a key that others want.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_contend_for_a_key() {
    plays::contended(Script::new("SQLite: one key, two hosts")).await;
}

/// Breaks if requests of several keys can wait in a circle across hosts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pairs_of_keys_cross() {
    plays::crossing_pairs(Script::new("SQLite: crossing pairs, two hosts")).await;
}
