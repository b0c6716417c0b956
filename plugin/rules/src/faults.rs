//! Faults of a configuration: all of them together, each with its place.

use std::fmt;

/// One fault of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where: a JSON path as in `rules[2].match.path`, or `line 7` of a rules file; empty for the whole document.
    pub place: String,
    /// What is wrong, and what was expected.
    pub message: String,
    /// The text in which the fault stands.
    pub excerpt: Option<Excerpt>,
}

/// A text of the configuration, with a spot in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The rule's line, or the text of one field.
    pub text: String,
    /// The spot, counted in characters from 0; one past the end for something missing there.
    pub column: usize,
}

/// All faults of a configuration; never empty. Displays as readable text of several lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// The faults, in the order in which they were found.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.0.iter()
    }

    pub(crate) fn one(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self(vec![Fault { place: place.into(), message: message.into(), excerpt: None }])
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.excerpt, self.place.is_empty()) {
            (Some(excerpt), _) => write!(f, "{}, column {}: ", self.place, excerpt.column + 1)?,
            (None, false) => write!(f, "{}: ", self.place)?,
            (None, true) => {}
        }
        f.write_str(&self.message)?;
        if let Some(Excerpt { text, column }) = &self.excerpt {
            // A tab would move the caret away from its spot; other control characters would do worse to a terminal.
            let shown: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            write!(f, "\n    {shown}\n    {:column$}^", "")?;
        }
        Ok(())
    }
}

/// Collects faults, so that one does not hide the next.
#[derive(Default)]
pub(crate) struct FaultList(Vec<Fault>);

impl FaultList {
    pub(crate) fn push(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub(crate) fn add(&mut self, place: impl Into<String>, message: impl Into<String>) {
        self.0.push(Fault { place: place.into(), message: message.into(), excerpt: None });
    }

    /// Keeps the fault of a failed result.
    pub(crate) fn keep<T>(&mut self, result: Result<T, Fault>) -> Option<T> {
        result.map_err(|fault| self.0.push(fault)).ok()
    }

    /// Takes over the faults of one rule. Those of a line all have one place and come from left to right.
    pub(crate) fn append_rule(&mut self, mut rule: Self) {
        let is_line = rule.0.windows(2).all(|pair| matches!(pair, [one, other] if one.place == other.place));
        if is_line {
            rule.0.sort_by_key(|fault| fault.excerpt.as_ref().map(|excerpt| excerpt.column));
        }
        self.0.append(&mut rule.0);
    }

    /// The value, if there were no faults.
    pub(crate) fn into_result<T>(self, value: Option<T>) -> Result<T, Faults> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(Faults(self.0)),
        }
    }
}

/// A text of the configuration that knows where it stands.
#[derive(Clone)]
pub(crate) struct Located<'a> {
    /// The text itself.
    pub(crate) text: &'a str,
    pub(crate) place: String,
    whole: &'a str,
    start: usize,
}

impl<'a> Located<'a> {
    /// A text that stands alone at `place`.
    pub(crate) fn new(place: impl Into<String>, text: &'a str) -> Self {
        Self { text, place: place.into(), whole: text, start: 0 }
    }

    /// The part from byte `start` on, up to byte `end`; the text around it is kept for excerpts.
    pub(crate) fn part(&self, start: usize, end: usize) -> Self {
        let text = self.text.get(start..end).unwrap_or_default();
        Self { text, place: self.place.clone(), whole: self.whole, start: self.start + start }
    }

    /// Splits at the first `separator`, which goes to neither side.
    pub(crate) fn split_once(&self, separator: char) -> Option<(Self, Self)> {
        let at = self.text.find(separator)?;
        Some((self.part(0, at), self.part(at + separator.len_utf8(), self.text.len())))
    }

    /// A fault at byte `offset` of the text.
    pub(crate) fn fault(&self, offset: usize, message: impl Into<String>) -> Fault {
        let before = self.whole.get(..self.start + offset).unwrap_or(self.whole);
        let excerpt = Excerpt { text: self.whole.to_owned(), column: before.chars().count() };
        Fault { place: self.place.clone(), message: message.into(), excerpt: Some(excerpt) }
    }
}
