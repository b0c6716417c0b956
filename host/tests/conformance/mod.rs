//! One list of tests for every store, on the real thing.
//!
//! A store's test file implements [`Harness`], names its child process with [`process::serve`], and expands
//! [`conformance!`]. Beside that it tests what only this store has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, dead_code, unreachable_pub)]

pub mod deaths;
pub mod hosts;
pub mod ownership;
pub mod process;

use std::future::Future;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use turnstile_host::store::{Event, Store};

/// One place (a file, a cluster) in which several incarnations of a store meet. Each test has its own.
pub trait Harness: Send + Sync {
    /// The TTL with which every host opens the store. Short, or the suite takes long; the store must be able to keep
    /// it on a busy machine.
    fn lease_ttl(&self) -> Duration;

    /// Opens the store as one more incarnation. Dropping the store must be an abrupt death.
    fn open(&self) -> impl Future<Output = (Arc<dyn Store>, UnboundedReceiver<Event>)> + Send;

    /// A command that opens the store in a process of its own and calls [`process::serve`].
    fn command(&self) -> Command;

    /// The most time past the TTL that the store takes to see that an incarnation is dead.
    fn expiry_slack(&self) -> Duration {
        self.lease_ttl() * 2
    }
}

/// Makes one test of every case, each with its own harness from `$harness`.
macro_rules! conformance {
    ($harness:path) => {
        conformance!($harness, ownership:
            a_free_key_is_gained_at_once,
            the_lease_is_renewed_all_the_time,
            hosts_get_a_key_in_the_order_of_their_claims,
            a_live_owner_keeps_its_key,
            contention_is_reported_once_per_ownership_and_soon,
            contention_is_reported_again_after_a_further_claim,
            a_claim_of_an_owned_key_raises_lock_delay_and_epoch,
            a_withdrawn_claim_leaves_nothing,
            a_claim_repeated_in_the_queue_keeps_its_place,
            operations_on_one_key_keep_their_order,
            many_keys_change_hands,
            two_hosts_race,
            an_ended_lease_frees_everything_at_once,
        );
        conformance!($harness, deaths:
            a_dead_owner_is_waited_out,
            a_killed_process_is_waited_out,
            the_largest_lock_delay_promised_outlives_its_host,
            a_quarantine_outlives_a_withdrawn_claim,
            a_quarantine_outlives_a_second_death,
            a_quarantine_outlives_the_end_of_a_lease,
            a_dead_claimant_is_passed_over,
            a_frozen_host_loses_its_lease,
            a_briefly_frozen_host_keeps_its_lease,
            a_frozen_observer_judges_nobody,
            epochs_never_go_back,
        );
    };
    ($harness:path, $module:ident: $($case:ident),+ $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            conformance::$module::$case(&$harness()).await;
        }
    )+};
}
pub(crate) use conformance;
