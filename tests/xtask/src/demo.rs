//! `cargo xtask demo`: the same burst at a legacy service, once past a plain Envoy and once past Turnstile.

use std::process::Command;

use crate::command::become_program;
use crate::failure::Failure;
use crate::host::{self, Profile};
use crate::layout::Layout;
use crate::plugin;
use crate::progress::Progress;

/// Programs of the tests' crate that the demo consists of.
const PROGRAMS: [&str; 2] = ["demo", "legacy-bank"];

/// Prepares release builds and runs the demo, which starts and stops everything itself.
pub(crate) fn run(layout: &Layout, arguments: &[String]) -> Result<(), Failure> {
    let mut progress = Progress::new(plugin::STEPS + 2);
    let lock = plugin::prepare(layout, &mut progress)?;
    progress.step("building the release", || host::build(layout, Profile::Release, &PROGRAMS))?;
    drop(lock);
    progress.open_step("running the demo");
    let mut demo = Command::new(layout.program(Profile::Release.directory(), "demo"));
    demo.current_dir(layout.root()).env("TURNSTILE_DEMO_DIR", layout.parts().join("demo")).args(arguments);
    Err(become_program(host::tell_places(layout, Profile::Release, &mut demo)))
}
