//! Where things are: the workspace, the target directory, and the parts kept below it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The places of this checkout.
pub(crate) struct Layout {
    root: PathBuf,
    target: PathBuf,
}

/// Held while parts are fetched and built: two tasks at once must not write the same files.
pub(crate) struct PartsLock(#[allow(dead_code, reason = "closing the file releases the lock")] File);

impl Layout {
    /// Finds the workspace that this program belongs to.
    pub(crate) fn find() -> Result<Self, Failure> {
        let start = match std::env::var_os("CARGO_MANIFEST_DIR") {
            Some(manifest) => PathBuf::from(manifest),
            None => std::env::current_dir().map_err(Failure::io("looking for the current directory"))?,
        };
        let root = start
            .ancestors()
            .find(|place| place.join("Cargo.lock").is_file() && place.join("tests/xtask").is_dir())
            .ok_or_else(|| Failure::new("this is no checkout of Turnstile").advise("run `cargo xtask` inside one"))?
            .to_path_buf();
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(target) => std::path::absolute(target).map_err(Failure::io("reading CARGO_TARGET_DIR"))?,
            None => root.join("target"),
        };
        let layout = Self { root, target };
        let logs = layout.logs();
        fs::create_dir_all(&logs).map_err(Failure::io(format!("creating {}", logs.display())))?;
        Ok(layout)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's target directory.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// What is fetched or built for use outside cargo: the wasm file, Envoy, logs.
    pub(crate) fn parts(&self) -> PathBuf {
        self.target.join("turnstile")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.parts().join("logs")
    }

    pub(crate) fn plugin(&self) -> PathBuf {
        self.parts().join("plugin.wasm")
    }

    pub(crate) fn envoy(&self) -> PathBuf {
        self.parts().join("envoy")
    }

    /// A program that cargo built; `profile` is the name of its directory.
    pub(crate) fn program(&self, profile: &str, name: &str) -> PathBuf {
        self.target.join(profile).join(name)
    }

    /// `path` as a person in the workspace would write it.
    pub(crate) fn short<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }

    /// Waits for other tasks of this checkout that are writing parts.
    pub(crate) fn lock_parts(&self) -> Result<PartsLock, Failure> {
        let path = self.parts().join("lock");
        let file = File::create(&path).map_err(Failure::io(format!("opening {}", path.display())))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("another `cargo xtask` is preparing parts here; waiting for it ...");
                file.lock().map_err(Failure::io(format!("locking {}", path.display())))?;
            }
            Err(TryLockError::Error(error)) => return Err(Failure::io(format!("locking {}", path.display()))(error)),
        }
        Ok(PartsLock(file))
    }
}

/// Puts `bytes` at `path` in one step, so that no reader sees half of them; false if they were there already.
pub(crate) fn replace_if_changed(path: &Path, bytes: &[u8]) -> Result<bool, Failure> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    let new = path.with_extension("new");
    fs::write(&new, bytes).map_err(Failure::io(format!("writing {}", new.display())))?;
    fs::rename(&new, path).map_err(Failure::io(format!("writing {}", path.display())))?;
    Ok(true)
}
