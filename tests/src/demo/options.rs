//! The demo's command line, as `cargo xtask demo --help` explains it.

use std::time::Duration;

/// How big the demo is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Leave everything running until Ctrl-C.
    pub keep: bool,
    /// Which proxies the burst goes past.
    pub past: Past,
    /// Connections of the load.
    pub connections: usize,
    /// Deposits of one burst.
    pub deposits: usize,
    /// Accounts that they go to.
    pub accounts: usize,
    /// How long the bank works on a deposit.
    pub work: Duration,
    /// Processes of the bank.
    pub workers: usize,
}

/// Which proxies the burst goes past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// Only a plain Envoy: the problem.
    Plain,
    /// A plain Envoy, then Turnstile: the problem and the cure.
    Both,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keep: false,
            past: Past::Both,
            connections: 64,
            deposits: 3_000,
            accounts: 4,
            work: Duration::from_millis(2),
            workers: 4,
        }
    }
}

impl Options {
    /// Reads the command line; the error says what is wrong with it.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(name) = arguments.next() {
            let mut number = |least: usize, most: usize| -> Result<usize, String> {
                let value = arguments.next().ok_or_else(|| format!("{name} needs a number"))?;
                let number = value.parse().map_err(|_| format!("{name} needs a number, not `{value}`"))?;
                if (least..=most).contains(&number) {
                    Ok(number)
                } else {
                    Err(format!("{name} is from {least} to {most}, not {number}"))
                }
            };
            match name.as_str() {
                "--keep" => options.keep = true,
                "--plain-only" => options.past = Past::Plain,
                "--connections" => options.connections = number(1, 1_000)?,
                "--deposits" => options.deposits = number(1, 1_000_000)?,
                "--accounts" => options.accounts = number(1, 1_000)?,
                "--work-ms" => options.work = Duration::from_millis(number(0, 10_000)? as u64),
                "--workers" => options.workers = number(1, 64)?,
                _ => return Err(format!("there is no option `{name}`")),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(parse(""), Ok(Options::default()));
    }

    #[test]
    fn every_option_is_read() {
        let expected = Options {
            keep: true,
            past: Past::Plain,
            connections: 8,
            deposits: 100,
            accounts: 2,
            work: Duration::from_millis(5),
            workers: 3,
        };
        let line = "--keep --plain-only --connections 8 --deposits 100 --accounts 2 --work-ms 5 --workers 3";
        assert_eq!(parse(line), Ok(expected));
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(parse("--deposit 5"), Err("there is no option `--deposit`".into()));
        assert_eq!(parse("--deposits"), Err("--deposits needs a number".into()));
        assert_eq!(parse("--deposits many"), Err("--deposits needs a number, not `many`".into()));
        assert_eq!(parse("--workers 0"), Err("--workers is from 1 to 64, not 0".into()));
    }
}
