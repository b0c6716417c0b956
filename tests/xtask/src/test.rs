//! `cargo xtask test`: every test of the workspace, on real parts.

use crate::command::{cargo, openly};
use crate::failure::Failure;
use crate::fuzz;
use crate::host::{self, Profile};
use crate::layout::Layout;
use crate::plugin;
use crate::progress::Progress;

/// Prepares the parts and runs `cargo test`. `arguments` go to cargo, and to the test programs after a `--`. Without
/// any, the fuzz targets have their short run as well.
pub(crate) fn run(layout: &Layout, arguments: &[String]) -> Result<(), Failure> {
    let fuzzes = arguments.is_empty();
    let mut progress = Progress::new(plugin::STEPS + 2 + if fuzzes { fuzz::STEPS } else { 0 });
    let lock = plugin::prepare(layout, &mut progress)?;
    progress.step("building the host service", || host::build(layout, Profile::Debug, &[]))?;
    drop(lock);
    progress.open_step("testing");
    let mut test = cargo(layout);
    test.arg("test");
    if !chooses_packages(arguments) {
        test.arg("--workspace");
    }
    openly(host::tell_places(layout, Profile::Debug, test.args(arguments))).map_err(|failure| {
        failure.advise("the failed tests are named above; `cargo xtask test NAME` runs one again")
    })?;
    if fuzzes {
        fuzz::short(layout, &mut progress)?;
    }
    println!("all tests passed, {:.1} s in all", progress.seconds());
    Ok(())
}

fn chooses_packages(arguments: &[String]) -> bool {
    arguments.iter().take_while(|argument| *argument != "--").any(|argument| {
        argument.starts_with("-p") || argument.starts_with("--package") || argument.starts_with("--manifest-path")
    })
}
