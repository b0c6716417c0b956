//! `cargo xtask test`: every test of the workspace, on real parts.

use crate::command::{cargo, openly};
use crate::etcd;
use crate::failure::Failure;
use crate::fuzz;
use crate::host::{self, Profile};
use crate::layout::Layout;
use crate::plugin;
use crate::progress::Progress;

/// Makes tests look further that look at random or at all there is: how far, each by a variable of its own.
const DEEP: &str = "--deep";

/// What they read: runs of the engine's simulation, of the filter's sessions, faults and seconds of the model, and
/// histories of the etcd store.
const FURTHER: [(&str, &str); 5] = [
    ("TURNSTILE_SIM_RUNS", "100000"),
    ("TURNSTILE_SEEDS", "300"),
    ("TURNSTILE_MODEL_DEEPER", "1"),
    ("TURNSTILE_MODEL_SECONDS", "300"),
    ("TURNSTILE_ETCD_HISTORIES", "20"),
];

/// How long each fuzz target runs.
const FUZZ_SECONDS: u32 = 10;
const FUZZ_SECONDS_DEEP: u32 = 300;

/// Prepares the parts and runs `cargo test`. `arguments` go to cargo, and to the test programs after a `--`. Without
/// any but `--deep`, the fuzz targets have their run as well.
pub(crate) fn run(layout: &Layout, arguments: &[String]) -> Result<(), Failure> {
    let deep = arguments.first().is_some_and(|argument| argument == DEEP);
    let arguments = if deep { arguments.get(1..).unwrap_or_default() } else { arguments };
    let fuzzes = arguments.is_empty();
    let mut progress = Progress::new(plugin::STEPS + 3 + if fuzzes { fuzz::STEPS } else { 0 });
    let lock = plugin::prepare(layout, &mut progress)?;
    progress.step("looking for etcd", || etcd::ensure(layout))?;
    progress.step("building the host service", || host::build(layout, Profile::Debug, &[]))?;
    drop(lock);
    progress.open_step("testing");
    let mut test = cargo(layout);
    test.arg("test");
    if !chooses_packages(arguments) {
        test.arg("--workspace");
    }
    if deep {
        // What the caller has set stands.
        test.envs(FURTHER.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()));
    }
    openly(host::tell_places(layout, Profile::Debug, test.args(arguments))).map_err(|failure| {
        failure.advise("the failed tests are named above; `cargo xtask test NAME` runs one again")
    })?;
    if fuzzes {
        fuzz::all(layout, &mut progress, if deep { FUZZ_SECONDS_DEEP } else { FUZZ_SECONDS })?;
    }
    println!("all tests passed, {:.1} s in all", progress.seconds());
    Ok(())
}

fn chooses_packages(arguments: &[String]) -> bool {
    arguments.iter().take_while(|argument| *argument != "--").any(|argument| {
        argument.starts_with("-p") || argument.starts_with("--package") || argument.starts_with("--manifest-path")
    })
}
