//! etcd and etcdctl for the tests: the ones on this machine, or Debian's, taken out of their packages.
//!
//! They are not installed: that would need root, and would leave a server that starts with the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{asked, on_path};
use crate::debian;
use crate::failure::Failure;
use crate::layout::Layout;
use crate::progress::Done;

/// The two programs.
pub(crate) struct Programs {
    pub(crate) etcd: PathBuf,
    pub(crate) etcdctl: PathBuf,
}

/// Variables that name them, ours to set for the tests and a person's to set for us.
pub(crate) const ETCD: &str = "TURNSTILE_ETCD";
pub(crate) const ETCDCTL: &str = "TURNSTILE_ETCDCTL";

const PACKAGES: [&str; 2] = ["etcd-server", "etcd-client"];

/// Versions that the store is tested with begin with one of these.
const VERSIONS: [&str; 2] = ["3.4.", "3.5."];

/// Makes sure that they are there.
pub(crate) fn ensure(layout: &Layout) -> Result<((), Done), Failure> {
    if let Some(programs) = find(layout) {
        return Ok(((), Done::Note(programs.checked()?)));
    }
    let by_hand = format!(
        "get etcd {}x or {}x and its etcdctl; {ETCD} and {ETCDCTL} name them where they are not on the PATH",
        VERSIONS[0], VERSIONS[1]
    );
    let stage = layout.parts().join("etcd-packages");
    debian::unpack(layout, &PACKAGES, &stage).map_err(|failure| failure.advise(by_hand))?;
    let programs = Programs::fetched(layout);
    for (name, place) in [("etcdctl", &programs.etcdctl), ("etcd", &programs.etcd)] {
        let from = stage.join("usr/bin").join(name);
        fs::rename(&from, place).map_err(Failure::io(format!("moving {name} to {}", place.display())))?;
    }
    fs::remove_dir_all(&stage).map_err(Failure::io(format!("removing {}", stage.display())))?;
    Ok(((), Done::Note(programs.checked()?)))
}

/// Where they are: where the environment says, or else on the PATH, or else where [`ensure`] puts them.
pub(crate) fn find(layout: &Layout) -> Option<Programs> {
    let named = |variable| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let fetched = Programs::fetched(layout);
    let place = |variable, program, fetched: PathBuf| {
        named(variable).or_else(|| on_path(program)).or_else(|| fetched.is_file().then_some(fetched))
    };
    Some(Programs { etcd: place(ETCD, "etcd", fetched.etcd)?, etcdctl: place(ETCDCTL, "etcdctl", fetched.etcdctl)? })
}

impl Programs {
    fn fetched(layout: &Layout) -> Self {
        Self { etcd: layout.parts().join("etcd"), etcdctl: layout.parts().join("etcdctl") }
    }

    /// The version, if it is one that the tests know.
    fn checked(&self) -> Result<String, Failure> {
        let version = version(&self.etcd, &["--version"])?;
        version_of_client(&self.etcdctl, &version)?;
        if VERSIONS.iter().any(|known| version.starts_with(known)) {
            Ok(format!("etcd {version}"))
        } else {
            Err(Failure::new(format!("{} is etcd {version}", self.etcd.display()))
                .advise(format!("let {ETCD} name an etcd {}x or {}x", VERSIONS[0], VERSIONS[1])))
        }
    }
}

fn version(program: &Path, arguments: &[&str]) -> Result<String, Failure> {
    let printed = asked(Command::new(program).env("ETCDCTL_API", "3").args(arguments));
    let version = printed.as_deref().and_then(|text| {
        let (_, version) = text.lines().next()?.split_once(": ")?;
        Some(version.trim().to_owned())
    });
    version.ok_or_else(|| {
        Failure::new(format!("{} does not tell its version", program.display()))
            .advise(format!("run it with `{}`; is it built for this machine?", arguments.join(" ")))
    })
}

/// A snapshot is restored by the client, so that it must be of the server's kind.
fn version_of_client(etcdctl: &Path, server: &str) -> Result<(), Failure> {
    let version = version(etcdctl, &["version"])?;
    let minor = |version: &str| version.rsplit_once('.').map(|(minor, _)| minor.to_owned());
    if minor(&version) == minor(server) {
        return Ok(());
    }
    Err(Failure::new(format!("{} is of version {version}, and etcd of {server}", etcdctl.display()))
        .advise(format!("let {ETCD} and {ETCDCTL} name two of one version")))
}
