//! The program behind `cargo xtask bench overhead`.

use std::process::ExitCode;

// One thread: the ext_authz servers run in it too, and should cost as little as can be.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    turnstile_tests::bench::overhead::main(std::env::args().skip(1)).await
}
