//! Two hosts on one SQLite file. (A host that is frozen past its lease there, with a proxy for each host: `e2e`.)

use std::time::Duration;

use turnstile_tests::scene::Script;

use crate::plays;

/// Breaks if a dead host's keys are given out too early, or never, or if nobody goes back to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_killed() {
    plays::killed(Script::new("SQLite: host killed")).await;
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

/// If the scenes could not see this, "no orphan overlaps" would mean nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_lock_delay_work_that_outlives_its_hold_is_met() {
    let verdict = plays::orphaned_work(Script::new("SQLite: no lock delay"), Duration::ZERO).await;
    assert_eq!(verdict.orphan_overlaps.len(), 1, "{verdict:?}");
}

/// Breaks if a lock delay is forgotten on the way from one host to another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_delay_keeps_the_next_host_away() {
    plays::orphaned_work(Script::new("SQLite: lock delay"), plays::covering()).await.assert_undisturbed();
}
