//! Debian packages: installed by `apt-get` as root or through sudo, or only unpacked, which needs no root.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::command::{asked, exists, quietly};
use crate::failure::Failure;
use crate::layout::Layout;

/// Package lists older than this are fetched anew, for a mirror keeps only the newest version of a package.
const LISTS_FRESH: Duration = Duration::from_secs(24 * 3600);

/// How we may install packages.
enum Root {
    Are,
    BySudo,
}

/// Installs `packages`; `why` ends the sentence "needed for ...".
pub(crate) fn install(layout: &Layout, packages: &[&str], why: &str) -> Result<(), Failure> {
    let by_hand = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    let advice = format!("{} is needed for {why}; as root: {by_hand}", packages.join(", "));
    if !exists("apt-get") {
        return Err(Failure::new("there is no apt-get on this machine").advise(format!(
            "{} (Debian's names) is needed for {why}; install it with this system's own package manager",
            packages.join(", ")
        )));
    }
    let Some(root) = root() else {
        return Err(Failure::new(format!(
            "{} cannot be installed: we are not root, and sudo asks for a password",
            packages.join(", ")
        ))
        .advise(advice));
    };
    let fresh = lists_are_fresh();
    if !fresh {
        // May fail with one of several sources broken: the install below shows whether that matters.
        let _ = quietly(layout, "apt-update", apt(&root).arg("update"));
    }
    let install =
        || quietly(layout, "apt-install", apt(&root).args(["install", "-y", "--no-install-recommends"]).args(packages));
    match install() {
        Ok(()) => Ok(()),
        Err(_) if fresh => {
            quietly(layout, "apt-update", apt(&root).arg("update"))?;
            install().map_err(|failure| failure.advise(advice))
        }
        Err(failure) => Err(failure.advise(advice)),
    }
}

/// Fetches the newest `packages` and unpacks them below `stage`, anew, without installing anything. Uses package lists
/// of its own: those of the system may be old or absent, and only root may renew them.
pub(crate) fn unpack(layout: &Layout, packages: &[&str], stage: &Path) -> Result<(), Failure> {
    if !exists("apt-get") || !exists("dpkg-deb") {
        return Err(Failure::new("this machine has no Debian packages: there is no apt-get, or no dpkg-deb"));
    }
    if stage.exists() {
        fs::remove_dir_all(stage).map_err(Failure::io(format!("removing {}", stage.display())))?;
    }
    let (state, files) = (stage.join("apt"), stage.join("packages"));
    for dir in [state.join("lists/partial"), state.join("cache/archives/partial"), files.clone()] {
        fs::create_dir_all(&dir).map_err(Failure::io(format!("making {}", dir.display())))?;
    }
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.current_dir(&files).args(["-q", "-o", &format!("Dir::State::lists={}/lists", state.display())]);
        // As root, apt would fetch as a user who may not write here.
        apt.args(["-o", &format!("Dir::Cache={}/cache", state.display()), "-o", "APT::Sandbox::User=root"]);
        apt
    };
    // May fail with one of several sources broken: the download below shows whether that matters.
    let _ = quietly(layout, "apt-update", apt().arg("update"));
    quietly(layout, "apt-download", apt().arg("download").args(packages))?;
    let fetched = files.read_dir().map_err(Failure::io(format!("reading {}", files.display())))?;
    for package in fetched.flatten() {
        quietly(layout, "unpack", Command::new("dpkg-deb").arg("-x").arg(package.path()).arg(stage))?;
    }
    Ok(())
}

fn root() -> Option<Root> {
    if asked(Command::new("id").arg("-u")).as_deref() == Some("0") {
        Some(Root::Are)
    } else if asked(Command::new("sudo").args(["-n", "true"])).is_some() {
        Some(Root::BySudo)
    } else {
        None
    }
}

fn apt(root: &Root) -> Command {
    let mut command = match root {
        Root::Are => Command::new("env"),
        Root::BySudo => {
            let mut sudo = Command::new("sudo");
            sudo.args(["-n", "env"]);
            sudo
        }
    };
    // Another apt (unattended upgrades, a second task) may be at work: wait for it.
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]);
    command
}

fn lists_are_fresh() -> bool {
    let Ok(lists) = Path::new("/var/lib/apt/lists").read_dir() else {
        return false;
    };
    let newest = lists
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().ends_with("Release"))
        // The change time of the inode is when apt put the file there; its content's time is the mirror's.
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| std::os::unix::fs::MetadataExt::ctime(&metadata))
        .max();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    newest
        .and_then(|ctime| u64::try_from(ctime).ok())
        .is_some_and(|ctime| now.saturating_sub(Duration::from_secs(ctime)) < LISTS_FRESH)
}
