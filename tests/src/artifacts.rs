//! Where the built and fetched parts under test lie: the plugin's wasm file, Envoy, the host binary, etcd.
//!
//! A part that is missing fails the test with a message that says how to get it; nothing is ever skipped.

use std::env;
use std::path::{Path, PathBuf};

/// The filter as Envoy loads it: `$TURNSTILE_PLUGIN_WASM`, or `target/turnstile/plugin.wasm`.
///
/// # Panics
/// If there is no such file.
pub fn plugin_wasm() -> PathBuf {
    let place = || target().join("turnstile/plugin.wasm");
    found("the plugin's wasm file", "TURNSTILE_PLUGIN_WASM", place, "`cargo xtask test` builds it")
}

/// The Envoy binary itself, no wrapper: `$TURNSTILE_ENVOY`, or `target/turnstile/envoy`.
///
/// # Panics
/// If there is no such file.
pub fn envoy() -> PathBuf {
    let place = || target().join("turnstile/envoy");
    found("Envoy", "TURNSTILE_ENVOY", place, "`cargo xtask test` fetches it")
}

/// The host's binary: `$TURNSTILE_BIN`, or `turnstile` in the profile directory that the running test was built into.
///
/// # Panics
/// If there is no such file.
pub fn turnstile_bin() -> PathBuf {
    let name = format!("turnstile{}", env::consts::EXE_SUFFIX);
    let place = || profile_dir().join(&name);
    found(
        "the host's binary",
        "TURNSTILE_BIN",
        place,
        "`cargo xtask test` or `cargo build -p turnstile-host` builds it",
    )
}

/// etcd's server: `$TURNSTILE_ETCD`, or `etcd` on the PATH, or `target/turnstile/etcd`.
///
/// # Panics
/// If there is no such file.
pub fn etcd() -> PathBuf {
    found("etcd", "TURNSTILE_ETCD", || on_path_or_fetched("etcd"), "`cargo xtask test` fetches it")
}

/// etcd's command line client: `$TURNSTILE_ETCDCTL`, or `etcdctl` on the PATH, or `target/turnstile/etcdctl`.
///
/// # Panics
/// If there is no such file.
pub fn etcdctl() -> PathBuf {
    found("etcdctl", "TURNSTILE_ETCDCTL", || on_path_or_fetched("etcdctl"), "`cargo xtask test` fetches it")
}

/// Where a shell would find `program`, or else where a fetched one lies.
fn on_path_or_fetched(program: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file());
    found.unwrap_or_else(|| target().join("turnstile").join(program))
}

fn found(what: &str, variable: &str, default: impl FnOnce() -> PathBuf, remedy: &str) -> PathBuf {
    let path = env::var_os(variable).filter(|value| !value.is_empty()).map_or_else(default, PathBuf::from);
    assert!(path.is_file(), "{what} is not at {}: {remedy} (or {variable} names another place)", path.display());
    path
}

/// The workspace's target directory.
pub fn target() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in a workspace");
    // A relative CARGO_TARGET_DIR is meant from where cargo was called; cargo runs tests in the crate's directory.
    match env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty()).map(PathBuf::from) {
        Some(dir) if dir.is_absolute() => dir,
        Some(dir) => workspace.join(dir),
        None => workspace.join("target"),
    }
}

/// `target/<profile>` of the running program, which lies in it (a binary) or in its `deps` (a test).
fn profile_dir() -> PathBuf {
    let program = env::current_exe().expect("the running program has a path");
    let dir = program.parent().expect("a program lies in a directory");
    match dir.file_name() {
        Some(name) if name == "deps" || name == "examples" => dir.parent().unwrap_or(dir).to_path_buf(),
        _ => dir.to_path_buf(),
    }
}
