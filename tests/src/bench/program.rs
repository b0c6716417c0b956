//! What the programs of all benches do alike: read flags, say what went wrong, and leave the result.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;

use super::Fault;
use super::machine::first_line;
use crate::artifacts;

/// The rows of a bench's table, by the names that `--only` takes.
pub trait Rows: Copy + PartialEq + 'static {
    /// All of them, in the order of the table.
    const ALL: &'static [Self];

    /// What a person types, and the JSON has.
    fn name(self) -> &'static str;
}

/// What every bench can be told.
#[derive(Debug, PartialEq, Eq)]
pub struct Flags<R> {
    /// How often every row is measured.
    pub rounds: u32,
    /// Length of a window.
    pub seconds: u64,
    /// The chosen rows, in the order of the table, each once.
    pub rows: Vec<R>,
}

/// The value behind a flag, if there is one.
pub type Next<'a> = &'a mut dyn FnMut() -> Result<String, Fault>;

impl<R: Rows> Flags<R> {
    /// Reads the arguments; `None` asks for help. `own` is offered every flag that not all benches have: it takes the
    /// value and says true, or says that it does not know the flag.
    ///
    /// # Errors
    /// Names the first argument that is not understood.
    pub fn parse(
        mut arguments: impl Iterator<Item = String>,
        mut own: impl FnMut(&str, Next<'_>) -> Result<bool, Fault>,
    ) -> Result<Option<Self>, Fault> {
        let mut flags = Self { rounds: 5, seconds: 4, rows: Vec::new() };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| Fault::Argument(format!("{argument} needs a value")));
            match argument.as_str() {
                "--help" | "-h" => return Ok(None),
                "--rounds" => flags.rounds = number(&argument, &value()?)?,
                "--seconds" => flags.seconds = number(&argument, &value()?)?.into(),
                "--only" => {
                    let name = value()?;
                    let row = R::ALL.iter().find(|row| row.name() == name);
                    flags.rows.push(*row.ok_or_else(|| Fault::Argument(format!("there is no row {name:?}")))?);
                }
                other if own(other, &mut value)? => {}
                other => return Err(Fault::Argument(format!("{other:?} is not understood"))),
            }
        }
        let chosen = |row: &R| flags.rows.is_empty() || flags.rows.contains(row);
        flags.rows = R::ALL.iter().copied().filter(chosen).collect();
        Ok(Some(flags))
    }
}

/// A number that an argument gives.
///
/// # Errors
/// If it is none from 1 to 1,000.
pub fn number(name: &str, text: &str) -> Result<u32, Fault> {
    let parsed = text.parse().ok().filter(|number| (1..=1_000).contains(number));
    parsed.ok_or_else(|| Fault::Argument(format!("{name} takes a number from 1 to 1000, not {text:?}")))
}

/// Ends the program `name` with what came of it.
pub fn end(name: &str, result: Result<(), Fault>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            // What was being measured stands in a line that has no end yet.
            eprintln!("\n{name}: {fault}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the table, and leaves it with every window in target/bench, as `name`.md and `name`.json.
///
/// # Errors
/// If a file cannot be written.
pub fn leave(name: &str, markdown: &str, json: &Value) -> Result<(), Fault> {
    let dir = artifacts::target().join("bench");
    fs::create_dir_all(&dir).map_err(|error| Fault::File(dir.clone(), error))?;
    for (ending, text) in [("md", markdown), ("json", &format!("{json:#}\n"))] {
        let path = dir.join(name).with_extension(ending);
        fs::write(&path, text).map_err(|error| Fault::File(path, error))?;
    }
    println!("\n{markdown}\nAlso in {}, as {name}.md and {name}.json.", dir.display());
    Ok(())
}

/// Which version of the sources this is.
pub fn commit() -> String {
    first_line(Path::new("git"), &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Row {
        First,
        Second,
        Third,
    }

    impl Rows for Row {
        const ALL: &'static [Self] = &[Self::First, Self::Second, Self::Third];

        fn name(self) -> &'static str {
            match self {
                Self::First => "first",
                Self::Second => "second",
                Self::Third => "third",
            }
        }
    }

    /// With a flag of its own, `--nodes N`.
    fn parse(line: &str) -> Result<Option<(Flags<Row>, u32)>, String> {
        let mut nodes = 0;
        let own = |flag: &str, value: Next<'_>| {
            if flag != "--nodes" {
                return Ok(false);
            }
            nodes = number(flag, &value()?)?;
            Ok(true)
        };
        let flags = Flags::parse(line.split_whitespace().map(str::to_owned), own);
        flags.map(|flags| flags.map(|flags| (flags, nodes))).map_err(|fault| fault.to_string())
    }

    #[test]
    fn without_arguments_everything_is_measured() {
        assert_eq!(parse(""), Ok(Some((Flags { rounds: 5, seconds: 4, rows: Row::ALL.to_vec() }, 0))));
        assert_eq!(parse("--rounds 2 --help"), Ok(None));
    }

    #[test]
    fn chosen_rows_keep_the_order_of_the_table() {
        let flags = Flags { rounds: 2, seconds: 1, rows: vec![Row::First, Row::Third] };
        let line = "--only third --rounds 2 --only first --nodes 3 --seconds 1 --only third";
        assert_eq!(parse(line), Ok(Some((flags, 3))));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (line, named) in [
            ("--only fourth", "fourth"),
            ("--only", "--only"),
            ("--rounds 0", "--rounds"),
            ("--seconds 1.5", "1.5"),
            ("--nodes", "--nodes"),
            ("--quick", "--quick"),
        ] {
            let fault = parse(line).unwrap_err();
            assert!(fault.contains(named), "{line}: {fault}");
        }
    }
}
