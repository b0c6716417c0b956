//! The program behind `cargo xtask bench etcd`.

use std::process::ExitCode;

// One thread for the load of either side: the other core is etcd's and the hosts'.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    turnstile_tests::bench::etcd::main(std::env::args().skip(1)).await
}
