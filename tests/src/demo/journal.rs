//! What the legacy bank really did: every execution writes down when it began and ended, and overlaps are counted
//! from that, not from what anybody claims.
//!
//! A record is one line, appended by one write, stamped with the system-wide monotonic clock:
//! `begin NANOS EXECUTION ACCOUNT TOKEN` (`-` for no token) or `end NANOS EXECUTION`.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use rustix::time::{ClockId, clock_gettime};

/// The journal's file in the bank's data directory.
pub const FILE: &str = "journal";

/// Where executions are written down.
pub struct Journal(File);

impl Journal {
    /// Opens the journal of the bank whose data is in `directory`.
    pub fn open(directory: &Path) -> io::Result<Self> {
        Ok(Self(OpenOptions::new().create(true).append(true).open(directory.join(FILE))?))
    }

    /// An execution begins now. `execution` is unique among all processes.
    pub fn begin(&self, execution: &str, account: &str, token: Option<&str>) -> io::Result<()> {
        // Whatever a token looks like, it must not break the line.
        let token = match token {
            None => "-",
            Some(token) if token.bytes().all(|byte| byte.is_ascii_graphic()) && !token.is_empty() => token,
            Some(_) => "?",
        };
        self.append(format!("begin {} {execution} {account} {token}\n", now_ns()))
    }

    /// The execution ends now.
    pub fn end(&self, execution: &str) -> io::Result<()> {
        self.append(format!("end {} {execution}\n", now_ns()))
    }

    fn append(&self, record: String) -> io::Result<()> {
        // O_APPEND and a single write: records of several processes never mix.
        match (&self.0).write(record.as_bytes())? {
            written if written == record.len() => Ok(()),
            _ => Err(io::Error::from(io::ErrorKind::WriteZero)),
        }
    }
}

/// What happened to one account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Executions that began.
    pub executions: u64,
    /// Of these, the ones that never ended.
    pub unfinished: u64,
    /// Executions that began while another one was at work.
    pub overlaps: u64,
    /// The most executions that were at work at once.
    pub at_once_max: u64,
    /// Executions that came without a fencing token.
    pub tokens_missing: u64,
    /// Executions whose token was not larger than that of every one that began before (or was no number).
    pub tokens_not_rising: u64,
}

/// Reads the journal in `directory` and counts, by account.
pub fn read(directory: &Path) -> io::Result<BTreeMap<String, Account>> {
    match std::fs::read_to_string(directory.join(FILE)) {
        Ok(text) => count(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

/// Begins sort behind ends of the same instant: those two did not overlap.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum What<'a> {
    End,
    Begin { account: &'a str, token: &'a str },
}

fn count(text: &str) -> io::Result<BTreeMap<String, Account>> {
    let mut records = text.lines().map(|line| parse(line).ok_or_else(|| bad(line))).collect::<io::Result<Vec<_>>>()?;
    // Records lie in the order of their writes, which is not quite that of their instants.
    records.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
    let mut accounts: BTreeMap<String, Account> = BTreeMap::new();
    let mut tokens: HashMap<&str, u64> = HashMap::new();
    let mut at_work: HashMap<&str, &str> = HashMap::new();
    for (_, what, execution) in &records {
        match what {
            What::Begin { account, token } => {
                let counted = accounts.entry((*account).to_owned()).or_default();
                counted.executions += 1;
                // What ends takes itself out of this again.
                counted.unfinished += 1;
                counted.overlaps += u64::from(counted.unfinished > 1);
                counted.at_once_max = counted.at_once_max.max(counted.unfinished);
                match (*token, token.parse::<u64>()) {
                    ("-", _) => counted.tokens_missing += 1,
                    (_, Ok(token)) if tokens.get(account).is_none_or(|last| token > *last) => {
                        tokens.insert(account, token);
                    }
                    _ => counted.tokens_not_rising += 1,
                }
                at_work.insert(execution, account);
            }
            What::End => {
                let account = at_work.remove(execution).and_then(|account| accounts.get_mut(account));
                account.ok_or_else(|| bad(execution))?.unfinished -= 1;
            }
        }
    }
    Ok(accounts)
}

fn parse(line: &str) -> Option<(u64, What<'_>, &str)> {
    let mut words = line.split(' ');
    let record = match words.next()? {
        "begin" => {
            let (nanos, execution) = (words.next()?.parse().ok()?, words.next()?);
            (nanos, What::Begin { account: words.next()?, token: words.next()? }, execution)
        }
        "end" => (words.next()?.parse().ok()?, What::End, words.next()?),
        _ => return None,
    };
    words.next().is_none().then_some(record)
}

fn bad(record: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the journal has a record that makes no sense: `{record}`"))
}

fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    // Both parts are non-negative on this clock.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[(&str, Account)]) {
        let expected = expected.iter().map(|(name, account)| ((*name).to_owned(), account.clone())).collect();
        assert_eq!(count(text).unwrap(), expected);
    }

    #[test]
    fn one_after_the_other_is_no_overlap() {
        check(
            "begin 10 a x 1\nend 20 a\nbegin 20 b x 2\nend 30 b\n",
            &[("x", Account { executions: 2, at_once_max: 1, ..Account::default() })],
        );
    }

    #[test]
    fn overlaps_are_counted_by_the_clock_whatever_the_order_of_writing() {
        // b began before a ended, although its record was written later.
        check(
            "begin 10 a x 1\nend 20 a\nbegin 19 b x 2\nend 30 b\n",
            &[("x", Account { executions: 2, overlaps: 1, at_once_max: 2, ..Account::default() })],
        );
    }

    #[test]
    fn accounts_do_not_overlap_each_other() {
        let one = Account { executions: 1, at_once_max: 1, ..Account::default() };
        check("begin 10 a x 1\nbegin 11 b y 1\nend 20 a\nend 21 b\n", &[("x", one.clone()), ("y", one)]);
    }

    #[test]
    fn tokens_must_rise() {
        check(
            "begin 1 a x 5\nend 2 a\nbegin 3 b x 5\nend 4 b\nbegin 5 c x -\nend 6 c\nbegin 7 d x nine\nend 8 d\nbegin 9 e x 6\nend 10 e\n",
            &[(
                "x",
                Account {
                    executions: 5,
                    at_once_max: 1,
                    tokens_missing: 1,
                    tokens_not_rising: 2,
                    ..Account::default()
                },
            )],
        );
    }

    #[test]
    fn what_never_ended_is_said_and_stays_at_work() {
        check(
            "begin 1 a x 1\nbegin 1000 b x 2\nend 1001 b\n",
            &[("x", Account { executions: 2, unfinished: 1, overlaps: 1, at_once_max: 2, ..Account::default() })],
        );
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in ["begin 1 a x\n", "end 1 a\n", "begin x a x 1\n", "middle 1 a\n", "end 1 a b\n"] {
            assert_eq!(count(text).unwrap_err().kind(), io::ErrorKind::InvalidData, "{text:?}");
        }
    }
}
