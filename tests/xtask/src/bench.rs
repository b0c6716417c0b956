//! `cargo xtask bench overhead`: what the filter and the host cost a request; `bench engine`: how fast locks change hands;
//! `bench etcd`: the same on etcd, beside etcd's own lock service.

use std::fs;
use std::process::Command;

use crate::command::{cargo, exists, openly, quietly};
use crate::debian;
use crate::etcd;
use crate::failure::Failure;
use crate::host::{self, Profile};
use crate::layout::Layout;
use crate::plugin;
use crate::progress::{Done, Progress};
use crate::protoc;

const OVERHEAD: &str = "bench-overhead";

const ENGINE: &str = "bench-engine";

const ETCD: &str = "bench-etcd";

/// Prepares release builds and the load generator, and runs the bench of the tests' crate.
pub(crate) fn overhead(layout: &Layout, arguments: &[String]) -> Result<(), Failure> {
    let mut progress = Progress::new(plugin::STEPS + 3);
    let lock = plugin::prepare(layout, &mut progress)?;
    progress.step("looking for wrk", || {
        if exists("wrk") {
            return Ok(((), Done::Before));
        }
        debian::install(layout, &["wrk"], "making load")?;
        Ok(((), Done::Now))
    })?;
    progress.step("building the release", || host::build(layout, Profile::Release, &[OVERHEAD]))?;
    drop(lock);
    progress.open_step("measuring");
    let mut bench = Command::new(layout.program(Profile::Release.directory(), OVERHEAD));
    openly(host::tell_places(layout, Profile::Release, bench.current_dir(layout.root()).args(arguments)))
}

/// Benches the engine alone, then through the port of a release host, and prints one table. Needs no Envoy.
pub(crate) fn engine(layout: &Layout, arguments: &[String]) -> Result<(), Failure> {
    let mut progress = Progress::new(6);
    let lock = layout.lock_parts()?;
    progress.step("looking for protoc", || protoc::ensure(layout))?;
    progress.step("building the release", || host::build(layout, Profile::Release, &[ENGINE]))?;
    drop(lock);
    let bench = |name| {
        let mut bench = cargo(layout);
        bench.args(["bench", "--package", "turnstile-core", "--bench", name]);
        bench
    };
    progress.step("building the benches of the engine alone", || {
        quietly(layout, "bench-build", bench("engine").args(["--bench", "memory", "--no-run"]))?;
        Ok(((), Done::Now))
    })?;
    let times = layout.target().join("bench/criterion");
    progress.step("timing the engine alone", || {
        // What benches that are no more have left there would be told again.
        if times.exists() {
            fs::remove_dir_all(&times).map_err(Failure::io(format!("removing {}", times.display())))?;
        }
        quietly(layout, "bench-times", bench("engine").env("CRITERION_HOME", &times))?;
        Ok(((), Done::Now))
    })?;
    progress.step("weighing the engine alone", || {
        quietly(layout, "bench-memory", &mut bench("memory"))?;
        Ok(((), Done::Now))
    })?;
    progress.open_step("measuring through a host");
    let mut program = Command::new(layout.program(Profile::Release.directory(), ENGINE));
    program.current_dir(layout.root()).arg("--criterion").arg(times);
    program.arg("--memory").arg(layout.logs().join("bench-memory.log")).args(arguments);
    openly(host::tell_places(layout, Profile::Release, &mut program))
}

/// Gets etcd, and benches release hosts on it beside its own lock service. Needs no Envoy.
pub(crate) fn etcd(layout: &Layout, arguments: &[String]) -> Result<(), Failure> {
    let mut progress = Progress::new(4);
    let lock = layout.lock_parts()?;
    progress.step("looking for etcd", || etcd::ensure(layout))?;
    progress.step("looking for protoc", || protoc::ensure(layout))?;
    progress.step("building the release", || host::build(layout, Profile::Release, &[ETCD]))?;
    drop(lock);
    progress.open_step("measuring");
    let mut bench = Command::new(layout.program(Profile::Release.directory(), ETCD));
    openly(host::tell_places(layout, Profile::Release, bench.current_dir(layout.root()).args(arguments)))
}
