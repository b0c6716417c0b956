//! The name of one history: a seed, and what of its script is left out. It can be written on a command line.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// One history to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) seed: u64,
    /// The requests that are made.
    pub(crate) asks: Kept,
    /// The faults that happen.
    pub(crate) faults: Kept,
    pub(crate) weather: Weather,
}

/// What of a list is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    All,
    Only(BTreeSet<usize>),
}

/// Whether clocks differ and messages take their time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    Rough,
    /// All clocks show true time, and every message takes a millisecond.
    Fair,
}

impl Case {
    /// All that the seed means.
    pub(crate) fn whole(seed: u64) -> Self {
        Self { seed, asks: Kept::All, faults: Kept::All, weather: Weather::Rough }
    }
}

impl Kept {
    pub(crate) fn has(&self, number: usize) -> bool {
        match self {
            Self::All => true,
            Self::Only(kept) => kept.contains(&number),
        }
    }

    /// Those that are kept of `count`.
    pub(crate) fn of(&self, count: usize) -> Vec<usize> {
        (0..count).filter(|number| self.has(*number)).collect()
    }
}

/// `17`, or `17/asks=0,4-6/faults=2/fair`.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seed)?;
        for (name, kept) in [("asks", &self.asks), ("faults", &self.faults)] {
            if let Kept::Only(kept) = kept {
                write!(f, "/{name}={}", ranges(kept))?;
            }
        }
        match self.weather {
            Weather::Rough => Ok(()),
            Weather::Fair => f.write_str("/fair"),
        }
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/');
        let seed = parts.next().and_then(|seed| seed.parse().ok()).ok_or("a case begins with its seed")?;
        let mut case = Self::whole(seed);
        for part in parts {
            match part.split_once('=') {
                Some(("asks", list)) => case.asks = Kept::Only(parse_ranges(list)?),
                Some(("faults", list)) => case.faults = Kept::Only(parse_ranges(list)?),
                None if part == "fair" => case.weather = Weather::Fair,
                _ => return Err(format!("no part of a case: {part}")),
            }
        }
        Ok(case)
    }
}

fn ranges(numbers: &BTreeSet<usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let texts = runs.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

fn parse_ranges(text: &str) -> Result<BTreeSet<usize>, String> {
    let mut numbers = BTreeSet::new();
    for range in text.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.parse::<usize>().map_err(|_| format!("no number: {text}"));
        numbers.extend(number(first)?..=number(last)?);
    }
    Ok(numbers)
}

#[test]
fn a_case_is_written_as_it_is_read() {
    for text in ["17", "0/asks=0,4-6/faults=2/fair", "3/asks=/faults=", "5/fair"] {
        assert_eq!(text.parse::<Case>().unwrap().to_string(), text);
    }
    for text in ["", "x", "1/asks", "1/asks=a", "1/what=1"] {
        assert!(text.parse::<Case>().is_err(), "{text}");
    }
}
