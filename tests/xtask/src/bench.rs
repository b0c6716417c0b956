//! `cargo xtask bench overhead`: what the filter and the host cost a request.

use std::process::Command;

use crate::command::{exists, openly};
use crate::debian;
use crate::failure::Failure;
use crate::host::{self, Profile};
use crate::layout::Layout;
use crate::plugin;
use crate::progress::{Done, Progress};

const PROGRAM: &str = "bench-overhead";

/// Prepares release builds and the load generator, and runs the bench of the tests' crate.
pub(crate) fn overhead(layout: &Layout, arguments: &[String]) -> Result<(), Failure> {
    let mut progress = Progress::new(plugin::STEPS + 3);
    let lock = plugin::prepare(layout, &mut progress)?;
    progress.step("looking for wrk", || {
        if exists("wrk") {
            return Ok(((), Done::Before));
        }
        debian::install(layout, &["wrk"], "making load")?;
        Ok(((), Done::Now))
    })?;
    progress.step("building the release", || host::build(layout, Profile::Release, &[PROGRAM]))?;
    drop(lock);
    progress.open_step("measuring");
    let mut bench = Command::new(layout.program(Profile::Release.directory(), PROGRAM));
    openly(host::tell_places(layout, Profile::Release, bench.current_dir(layout.root()).args(arguments)))
}
