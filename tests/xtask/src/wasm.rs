//! A compiler for `wasm32-unknown-unknown`: the one in use with that target added by rustup, or Debian's.

use std::path::Path;
use std::process::Command;

use crate::command::{asked, cargo, exists, quietly};
use crate::debian;
use crate::failure::Failure;
use crate::layout::Layout;
use crate::progress::Done;

pub(crate) const TARGET: &str = "wasm32-unknown-unknown";

/// Forces one of the two ways: `rustup` or `debian`.
pub(crate) const CHOICE: &str = "TURNSTILE_WASM_TOOLCHAIN";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "lld"];

/// Which compiler builds the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// The compiler in use, which has the target's standard library.
    InUse,
    /// Debian's `rustc-web`, which builds the standard library from Debian's source package.
    Debian,
}

impl Toolchain {
    /// Finds or gets a compiler.
    pub(crate) fn ensure(layout: &Layout) -> Result<(Self, Done), Failure> {
        match std::env::var(CHOICE).as_deref() {
            Ok("rustup") => Self::by_rustup(layout),
            Ok("debian") => Self::by_debian(layout),
            Ok(other) => Err(Failure::usage(format!("{CHOICE} is `{other}`"), "cargo xtask setup --help")),
            Err(_) => Self::by_rustup(layout).or_else(|rustup| {
                Self::by_debian(layout).map_err(|debian| {
                    Failure::new(format!(
                        "no compiler for {TARGET}.\nBy rustup: {rustup}\nBy Debian's packages: {debian}"
                    ))
                    .advise(format!("get one of the two ways to work; the easiest is `rustup target add {TARGET}`"))
                })
            }),
        }
    }

    /// `cargo build` for the target, ready for more arguments.
    pub(crate) fn build(self, layout: &Layout) -> Command {
        let mut build = cargo(layout);
        build.args(["build", "--target", TARGET]);
        match self {
            Self::InUse => {}
            Self::Debian => {
                build
                    .args(["-Z", "build-std=std,panic_abort", "--target-dir"])
                    .arg(layout.target().join("wasm-debian"));
                // build-std is for nightly compilers, unless one insists; Debian's compiler has no linker for wasm.
                build.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                build.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld");
            }
        }
        build
    }

    /// Where [`Toolchain::build`] puts the files of `profile`.
    pub(crate) fn output(self, layout: &Layout, profile: &str) -> std::path::PathBuf {
        let target = match self {
            Self::InUse => layout.target().to_path_buf(),
            Self::Debian => layout.target().join("wasm-debian"),
        };
        target.join(TARGET).join(profile)
    }

    fn by_rustup(layout: &Layout) -> Result<(Self, Done), Failure> {
        if in_use_has_target(layout) {
            return Ok((Self::InUse, Done::Before));
        }
        if !exists("rustup") {
            return Err(Failure::new(format!("the compiler in use has no {TARGET}, and there is no rustup to add it")));
        }
        quietly(layout, "rustup", Command::new("rustup").current_dir(layout.root()).args(["target", "add", TARGET]))?;
        if in_use_has_target(layout) {
            Ok((Self::InUse, Done::Now))
        } else {
            Err(Failure::new(format!("rustup added {TARGET}, but not to the compiler that cargo uses"))
                .advise("`rustup show` names the toolchains; is another rustc first on the PATH?"))
        }
    }

    fn by_debian(layout: &Layout) -> Result<(Self, Done), Failure> {
        let note = || Done::Note("Debian's rustc-web".into());
        if debian_is_ready() {
            return Ok((Self::Debian, note()));
        }
        debian::install(layout, &DEBIAN_PACKAGES, "building the plugin for wasm without rustup")?;
        if debian_is_ready() {
            Ok((Self::Debian, note()))
        } else {
            Err(Failure::new(format!(
                "{} are installed, but {DEBIAN_RUSTC} finds no standard library source or there is no wasm-ld",
                DEBIAN_PACKAGES.join(", ")
            )))
        }
    }
}

fn in_use_has_target(layout: &Layout) -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    asked(Command::new(rustc).current_dir(layout.root()).args(["--print", "target-libdir", "--target", TARGET]))
        .and_then(|place| Path::new(&place).read_dir().ok())
        .is_some_and(|files| files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-")))
}

fn debian_is_ready() -> bool {
    let source = asked(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]))
        .map(|sysroot| Path::new(&sysroot).join("lib/rustlib/src/rust/library/std/Cargo.toml"));
    source.is_some_and(|source| source.is_file()) && exists("wasm-ld")
}
