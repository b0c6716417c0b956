//! Builds the host service with the wasm file inside, and tells other programs where the parts are.

use std::process::Command;

use crate::command::{cargo, quietly};
use crate::etcd;
use crate::failure::Failure;
use crate::layout::Layout;
use crate::progress::Done;

/// How the host is built.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    Debug,
    Release,
}

impl Profile {
    /// The directory below target/.
    pub(crate) fn directory(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }
}

/// Builds the host's binary `turnstile` and the programs `extra` of the tests' crate.
pub(crate) fn build(layout: &Layout, profile: Profile, extra: &[&str]) -> Result<((), Done), Failure> {
    let mut build = cargo(layout);
    build.args(["build", "--package", "turnstile-host", "--bin", "turnstile"]);
    if !extra.is_empty() {
        build.args(["--package", "turnstile-tests"]);
    }
    for program in extra {
        build.args(["--bin", program]);
    }
    if let Profile::Release = profile {
        build.arg("--release");
    }
    quietly(layout, "host", &mut build)?;
    Ok(((), Done::Now))
}

/// Sets the variables by which the tests' crate finds the parts; that of the filter is set where it is needed
/// (see [`cargo`]).
pub(crate) fn tell_places<'a>(layout: &Layout, profile: Profile, command: &'a mut Command) -> &'a mut Command {
    if let Some(programs) = etcd::find(layout) {
        command.env(etcd::ETCD, programs.etcd).env(etcd::ETCDCTL, programs.etcdctl);
    }
    command
        .env("TURNSTILE_ENVOY", layout.envoy())
        .env("TURNSTILE_BIN", layout.program(profile.directory(), "turnstile"))
}
