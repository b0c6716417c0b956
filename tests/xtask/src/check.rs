//! `cargo xtask check` and `fix`: form, lints, documentation, and the rules of the house.

use std::process::Command;

use crate::command::{asked, cargo, exists, quietly};
use crate::failure::Failure;
use crate::layout::Layout;
use crate::progress::{Done, Progress};
use crate::tidy;
use crate::wasm::{TARGET, Toolchain};

/// Looks, and changes nothing but the target directory.
pub(crate) fn run(layout: &Layout) -> Result<(), Failure> {
    let mut progress = Progress::new(7);
    let _lock = layout.lock_parts()?;
    progress.step("looking for rustfmt and clippy", || components(layout))?;
    progress.step("tidy: the rules of the house", || tidy::check(layout))?;
    progress.step("cargo fmt", || {
        shown(layout, "fmt", cargo(layout).args(["fmt", "--all", "--check"]), "`cargo xtask fix` formats")
    })?;
    progress.step("cargo clippy", || {
        shown(
            layout,
            "clippy",
            cargo(layout).args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
            "mend it; `cargo xtask fix` mends what clippy can",
        )
    })?;
    let toolchain = progress.step("finding a compiler for wasm", || Toolchain::ensure(layout))?;
    progress.step("cargo clippy, plugin for wasm", || match toolchain {
        Toolchain::InUse => shown(
            layout,
            "clippy-wasm",
            cargo(layout).args(["clippy", "--package", "turnstile-plugin", "--target", TARGET, "--", "-D", "warnings"]),
            "mend it; `cargo xtask fix` mends what clippy can",
        ),
        // Clippy belongs to one compiler, and the one in use cannot compile for wasm: let Debian's own warn.
        Toolchain::Debian => {
            let mut build = toolchain.build(layout);
            build.env("CARGO_BUILD_WARNINGS", "deny").args(["--package", "turnstile-plugin"]);
            shown(layout, "clippy-wasm", &mut build, "mend it")
                .map(|(value, _)| (value, Done::Note("compiler warnings only: clippy is of another compiler".into())))
        }
    })?;
    progress.step("cargo doc", || {
        let mut doc = cargo(layout);
        doc.env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--workspace", "--no-deps"]);
        shown(layout, "doc", &mut doc, "mend the documentation")
    })?;
    println!("all is well, {:.1} s in all", progress.seconds());
    Ok(())
}

/// Mends what machines can mend.
pub(crate) fn fix(layout: &Layout) -> Result<(), Failure> {
    let mut progress = Progress::new(3);
    let _lock = layout.lock_parts()?;
    progress.step("looking for rustfmt and clippy", || components(layout))?;
    progress.step("cargo clippy --fix", || {
        let mut clippy = cargo(layout);
        clippy.args(["clippy", "--fix", "--workspace", "--all-targets", "--allow-dirty", "--allow-staged"]);
        shown(layout, "fix", &mut clippy, "it must compile before it can be mended")
    })?;
    progress.step("cargo fmt", || {
        shown(layout, "fmt", cargo(layout).args(["fmt", "--all"]), "it must parse before it can be formatted")
    })?;
    println!("now `cargo xtask check` says what is left");
    Ok(())
}

fn shown(layout: &Layout, name: &str, command: &mut Command, advice: &str) -> Result<((), Done), Failure> {
    let log = layout.logs().join(format!("{name}.log"));
    quietly(layout, name, command)
        .map_err(|failure| failure.advise(format!("{advice} (whole output: {})", layout.short(&log))))?;
    Ok(((), Done::Now))
}

/// A minimal toolchain has neither; rustup can add them.
fn components(layout: &Layout) -> Result<((), Done), Failure> {
    let missing: Vec<&str> = [("rustfmt", "fmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(_, subcommand)| asked(cargo(layout).args([subcommand, "--version"])).is_none())
        .map(|(component, _)| component)
        .collect();
    if missing.is_empty() {
        return Ok(((), Done::Before));
    }
    let by_hand = format!(
        "rustup component add {}; or, with Debian's compiler: apt-get install rustfmt-web rust-web-clippy",
        missing.join(" ")
    );
    if !exists("rustup") {
        return Err(Failure::new(format!("cargo has no {}", missing.join(" and no "))).advise(by_hand));
    }
    quietly(
        layout,
        "rustup",
        Command::new("rustup").current_dir(layout.root()).args(["component", "add"]).args(&missing),
    )
    .map_err(|failure| failure.advise(by_hand))?;
    Ok(((), Done::Now))
}
