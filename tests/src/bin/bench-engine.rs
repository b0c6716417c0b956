//! The program behind `cargo xtask bench engine`.

use std::process::ExitCode;

// One thread, for it is pinned to one core.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    turnstile_tests::bench::engine::main(std::env::args().skip(1)).await
}
