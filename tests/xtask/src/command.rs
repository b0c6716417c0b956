//! Runs other programs: quietly into a log whose tail is shown on failure, or openly.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Output, Stdio};

use crate::failure::Failure;
use crate::layout::Layout;

/// Lines of a failed command's log that are shown.
const TAIL_LINES: usize = 30;

/// Cargo, for this workspace and as if a person had called it: what the `cargo run` around us set for *this* package
/// must not reach it, or it would think that the environment of other packages changed.
pub(crate) fn cargo(layout: &Layout) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(layout.root());
    for (name, _) in std::env::vars_os() {
        let ours = name.to_str().is_some_and(|name| {
            ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        });
        if ours {
            cargo.env_remove(name);
        }
    }
    // The host embeds the filter, and its build script looks for it in the usual place. Naming that place would make
    // cargo build anew whatever it had built without the name, and the other way round.
    if layout.target() == layout.root().join("target") {
        cargo.env_remove("TURNSTILE_PLUGIN_WASM");
    } else {
        cargo.env("TURNSTILE_PLUGIN_WASM", layout.plugin());
    }
    cargo
}

/// Runs `command` with its output in `<name>.log`; a failure shows the log's tail.
pub(crate) fn quietly(layout: &Layout, name: &str, command: &mut Command) -> Result<(), Failure> {
    let path = layout.logs().join(format!("{name}.log"));
    let opening = || Failure::io(format!("writing {}", path.display()));
    let mut log = File::create(&path).map_err(opening())?;
    writeln!(log, "$ {}", shown(command)).map_err(opening())?;
    let errors = log.try_clone().map_err(opening())?;
    let status = command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .status()
        .map_err(|error| not_started(command, &error))?;
    if status.success() {
        return Ok(());
    }
    let text = std::fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    Err(ended(command, status).tail(tail(&text)).advise(format!("the whole output is in {}", layout.short(&path))))
}

/// Runs `command` with the terminal's output.
pub(crate) fn openly(command: &mut Command) -> Result<(), Failure> {
    println!("      $ {}", shown(command));
    let status = command.stdin(Stdio::null()).status().map_err(|error| not_started(command, &error))?;
    if status.success() { Ok(()) } else { Err(ended(command, status)) }
}

/// Turns into `command`, so that signals and the exit code are its own; returns only if it cannot be started.
pub(crate) fn become_program(command: &mut Command) -> Failure {
    println!("      $ {}", shown(command));
    let error = command.exec();
    not_started(command, &error)
}

/// What `command` prints on stdout, if it can be run and succeeds.
pub(crate) fn asked(command: &mut Command) -> Option<String> {
    let Output { status, stdout, .. } = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    status.success().then(|| String::from_utf8_lossy(&stdout).trim().to_owned())
}

/// True if `program` can be started.
pub(crate) fn exists(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

/// Where a shell would find `program`.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// `command` as a person could type it.
pub(crate) fn shown(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        value.map(|value| format!("{}={}", name.to_string_lossy(), quoted(&value.to_string_lossy())))
    });
    let program = std::path::Path::new(command.get_program());
    // Cargo tells us its full path; a person types its name.
    let program = if program.file_stem().is_some_and(|stem| stem == "cargo") {
        "cargo".into()
    } else {
        program.to_string_lossy()
    };
    let arguments = command.get_args().map(|argument| quoted(&argument.to_string_lossy()));
    variables.chain([program.into_owned()]).chain(arguments).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn not_started(command: &Command, error: &std::io::Error) -> Failure {
    let program = command.get_program().to_string_lossy().into_owned();
    let failure = Failure::new(format!("`{program}` could not be started: {error}"));
    match error.kind() {
        ErrorKind::NotFound => {
            failure.advise(format!("install `{program}` (on Debian as root: apt-get install {})", package_of(&program)))
        }
        _ => failure,
    }
}

fn package_of(program: &str) -> &str {
    match program {
        "pip" | "pip3" => "python3-pip",
        "cc" => "gcc libc6-dev",
        other => other,
    }
}

fn ended(command: &Command, status: ExitStatus) -> Failure {
    Failure::new(format!("`{}` ended with {status}", shown(command)))
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(TAIL_LINES);
    lines.get(first..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_could_be_typed() {
        let mut command = Command::new("/some/where/cargo");
        command.env("A", "x y").args(["build", "it's"]);
        assert_eq!(shown(&command), r"A='x y' cargo build 'it'\''s'");
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let text: String = (0..100).map(|line| format!("{line}\n")).collect();
        let tail = tail(&text);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.starts_with("70\n") && tail.ends_with("99"));
    }
}
