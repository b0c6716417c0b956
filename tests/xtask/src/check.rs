//! `cargo xtask check` and `fix`: form, lints, documentation, and the rules of the house.

use std::process::Command;

use crate::command::{asked, cargo, exists, quietly};
use crate::failure::Failure;
use crate::fuzz;
use crate::layout::Layout;
use crate::progress::{Done, Progress};
use crate::protoc;
use crate::tidy;
use crate::wasm::{TARGET, Toolchain};

/// Looks, and changes nothing but the target directory. One fault does not hide the next: all checks run.
pub(crate) fn run(layout: &Layout) -> Result<(), Failure> {
    let mut progress = Progress::new(9);
    let _lock = layout.lock_parts()?;
    progress.step("looking for rustfmt and clippy", || components(layout))?;
    progress.step("looking for protoc", || protoc::ensure(layout))?;
    let toolchain = progress.step("finding a compiler for wasm", || Toolchain::ensure(layout))?;
    let results = [
        progress.step("tidy: the rules of the house", || tidy::check(layout)),
        progress.step("cargo fmt", || {
            for (name, which) in FORMATTED {
                let mut fmt = cargo(layout);
                fmt.arg("fmt").args(which).args(["--check", "--", "--color", "never"]);
                shown(layout, name, &mut fmt, "`cargo xtask fix` formats")?;
            }
            Ok(((), Done::Now))
        }),
        progress.step("cargo clippy", || {
            let mut clippy = cargo(layout);
            clippy.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
            shown(layout, "clippy", &mut clippy, MEND)
        }),
        progress.step("cargo clippy, fuzz targets", || {
            let mut clippy = cargo(layout);
            clippy.args(["clippy", "--manifest-path", fuzz::MANIFEST, "--no-default-features", "--target-dir"]);
            clippy.arg(layout.target()).args(["--", "-D", "warnings"]);
            shown(layout, "clippy-fuzz", &mut clippy, MEND)
        }),
        progress.step("cargo clippy, plugin and engine for wasm", || check_wasm(layout, toolchain)),
        progress.step("cargo doc", || {
            let mut doc = cargo(layout);
            doc.env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--workspace", "--no-deps"]);
            shown(layout, "doc", &mut doc, "mend the documentation")
        }),
    ];
    let failures: Vec<Failure> = results.into_iter().filter_map(Result::err).collect();
    if failures.is_empty() {
        println!("all is well, {:.1} s in all", progress.seconds());
        return Ok(());
    }
    for failure in &failures {
        eprintln!("\n{failure}");
    }
    Err(Failure::new(format!("{} of the checks failed", failures.len())).advise("mend what is told above"))
}

/// The workspace, and the fuzz targets, which are apart from it.
const FORMATTED: [(&str, &[&str]); 2] = [("fmt", &["--all"]), ("fmt-fuzz", &["--manifest-path", fuzz::MANIFEST])];

const MEND: &str = "mend it; `cargo xtask fix` mends what clippy can";

fn check_wasm(layout: &Layout, toolchain: Toolchain) -> Result<((), Done), Failure> {
    match toolchain {
        Toolchain::InUse => {
            let mut clippy = cargo(layout);
            // The engine as well: one day it hands locks on inside the proxy.
            clippy.args(["clippy", "--package", "turnstile-plugin", "--package", "turnstile-core"]);
            clippy.args(["--target", TARGET, "--", "-D", "warnings"]);
            shown(layout, "clippy-wasm", &mut clippy, MEND)
        }
        // Clippy belongs to one compiler, and the one in use cannot compile for wasm: let Debian's own warn.
        Toolchain::Debian => {
            let mut build = toolchain.build(layout);
            build.env("CARGO_BUILD_WARNINGS", "deny").args(["--package", "turnstile-plugin"]);
            shown(layout, "clippy-wasm", &mut build, "mend it")?;
            Ok(((), Done::Note("the compiler's warnings only: clippy is of another compiler".into())))
        }
    }
}

/// Mends what machines can mend.
pub(crate) fn fix(layout: &Layout) -> Result<(), Failure> {
    let mut progress = Progress::new(4);
    let _lock = layout.lock_parts()?;
    progress.step("looking for rustfmt and clippy", || components(layout))?;
    progress.step("looking for protoc", || protoc::ensure(layout))?;
    progress.step("cargo clippy --fix", || {
        let mut clippy = cargo(layout);
        clippy.args(["clippy", "--fix", "--workspace", "--all-targets", "--allow-dirty", "--allow-staged"]);
        shown(layout, "fix", &mut clippy, "it must compile before it can be mended")
    })?;
    progress.step("cargo fmt", || {
        for (name, which) in FORMATTED {
            let mut fmt = cargo(layout);
            shown(layout, name, fmt.arg("fmt").args(which), "it must parse before it can be formatted")?;
        }
        Ok(((), Done::Now))
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
