//! Fetches and builds the parts that everything else needs: Envoy, protoc, and the filter as a wasm file.

use std::fs;

use crate::command::quietly;
use crate::envoy;
use crate::failure::Failure;
use crate::host::{self, Profile};
use crate::layout::{Layout, PartsLock, replace_if_changed};
use crate::progress::{Done, Progress};
use crate::protoc;
use crate::wasm::Toolchain;

/// Steps that [`prepare`] shows.
pub(crate) const STEPS: usize = 4;

const PACKAGE: &str = "turnstile-plugin";
const FILE: &str = "turnstile_plugin.wasm";

/// `cargo xtask setup`.
pub(crate) fn setup(layout: &Layout) -> Result<(), Failure> {
    let mut progress = Progress::new(STEPS + 1);
    let _lock = prepare(layout, &mut progress)?;
    progress.step("building the release", || host::build(layout, Profile::Release, &[]))?;
    println!(
        "ready after {:.1} s: {}, {} and {}",
        progress.seconds(),
        layout.short(&layout.program(Profile::Release.directory(), "turnstile")),
        layout.short(&layout.envoy()),
        layout.short(&layout.plugin())
    );
    Ok(())
}

/// `cargo xtask build-plugin`.
pub(crate) fn build_only(layout: &Layout) -> Result<(), Failure> {
    let mut progress = Progress::new(2);
    let _lock = layout.lock_parts()?;
    let toolchain = progress.step("finding a compiler for wasm", || Toolchain::ensure(layout))?;
    progress.step("building the plugin", || build(layout, toolchain))?;
    println!("ready after {:.1} s: {}", progress.seconds(), layout.short(&layout.plugin()));
    Ok(())
}

/// Makes sure of Envoy, of what the host is built with, and of the wasm file, and keeps others from changing them while the lock is held.
pub(crate) fn prepare(layout: &Layout, progress: &mut Progress) -> Result<PartsLock, Failure> {
    let lock = layout.lock_parts()?;
    progress.step(&format!("fetching Envoy {}", envoy::VERSION), || envoy::ensure(layout))?;
    progress.step("looking for protoc", || protoc::ensure(layout))?;
    let toolchain = progress.step("finding a compiler for wasm", || Toolchain::ensure(layout))?;
    progress.step("building the plugin", || build(layout, toolchain))?;
    Ok(lock)
}

fn build(layout: &Layout, toolchain: Toolchain) -> Result<((), Done), Failure> {
    // Cargo knows best whether there is something to do.
    quietly(layout, "plugin", toolchain.build(layout).args(["--package", PACKAGE, "--profile", "plugin"]))?;
    let built = toolchain.output(layout, "plugin").join(FILE);
    let bytes = fs::read(&built).map_err(Failure::io(format!("reading {}", built.display())))?;
    if !bytes.starts_with(b"\0asm") {
        return Err(Failure::new(format!("{} is no wasm file", built.display())));
    }
    let changed = replace_if_changed(&layout.plugin(), &bytes)?;
    Ok(((), if changed { Done::Note(format!("{} KiB", bytes.len().div_ceil(1024))) } else { Done::Before }))
}
