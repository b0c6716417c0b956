//! One section of a TOML file, read field by field, so that every fault of a file can be collected.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::{Table, Value};

/// What is wrong, and where.
#[derive(Debug)]
pub(super) struct Fault {
    place: String,
    problem: String,
}

impl Fault {
    pub(super) fn syntax(error: &toml::de::Error) -> Self {
        Self { place: "TOML syntax".into(), problem: error.to_string().trim_end().into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)
    }
}

/// A table whose fields are taken out one by one; what is left in the end is unknown, and a fault.
pub(super) struct Section<'a> {
    path: String,
    table: Table,
    known: Vec<&'static str>,
    faults: &'a mut Vec<Fault>,
}

impl<'a> Section<'a> {
    pub(super) fn root(table: Table, faults: &'a mut Vec<Fault>) -> Self {
        Self { path: String::new(), table, known: Vec::new(), faults }
    }

    /// Reads a section below this one; an absent one reads as empty.
    pub(super) fn section<T>(&mut self, name: &'static str, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let table = match self.take(name) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                self.fault(name, &format!("expected a section, found {}", other.type_str()));
                Table::new()
            }
        };
        let mut section = Section { path: self.place(name), table, known: Vec::new(), faults: self.faults };
        let result = read(&mut section);
        section.finish();
        result
    }

    pub(super) fn text(&mut self, name: &'static str, default: &str) -> String {
        match self.take(name) {
            None => default.into(),
            Some(Value::String(text)) if !text.is_empty() => text,
            Some(other) => self.unexpected(name, "a text that is not empty", &other, default.into()),
        }
    }

    pub(super) fn flag(&mut self, name: &'static str, default: bool) -> bool {
        match self.take(name) {
            None => default,
            Some(Value::Boolean(flag)) => flag,
            Some(other) => self.unexpected(name, "true or false", &other, default),
        }
    }

    pub(super) fn address(&mut self, name: &'static str, default: SocketAddr) -> SocketAddr {
        let expected = "an address with a port such as \"127.0.0.1:7878\"";
        match self.take(name) {
            None => default,
            Some(value) => match value.as_str().and_then(|text| text.parse().ok()) {
                Some(address) => address,
                None => self.unexpected(name, expected, &value, default),
            },
        }
    }

    pub(super) fn count(&mut self, name: &'static str, default: usize, range: RangeInclusive<usize>) -> usize {
        match self.take(name) {
            None => default,
            Some(value) => {
                let count = value.as_integer().and_then(|count| usize::try_from(count).ok());
                match count.filter(|count| range.contains(count)) {
                    Some(count) => count,
                    None => {
                        let expected = format!("a whole number from {} to {}", range.start(), range.end());
                        self.unexpected(name, &expected, &value, default)
                    }
                }
            }
        }
    }

    pub(super) fn duration(
        &mut self,
        name: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        match self.take(name) {
            None => default,
            Some(value) => {
                let duration = value.as_str().and_then(|text| humantime::parse_duration(text).ok());
                match duration.filter(|duration| range.contains(duration)) {
                    Some(duration) => duration,
                    None => {
                        let show = |duration: &Duration| humantime::format_duration(*duration).to_string();
                        let expected = format!(
                            "a duration from \"{}\" to \"{}\", such as \"1s\" or \"250ms\"",
                            show(range.start()),
                            show(range.end())
                        );
                        self.unexpected(name, &expected, &value, default)
                    }
                }
            }
        }
    }

    /// Reports a fault of the field `name`.
    pub(super) fn fault(&mut self, name: &str, problem: &str) {
        let place = self.place(name);
        self.faults.push(Fault { place, problem: problem.into() });
    }

    /// Reports what nobody asked for.
    pub(super) fn finish(&mut self) {
        let unknown: Vec<String> = std::mem::take(&mut self.table).into_iter().map(|(name, _)| name).collect();
        let known = self.known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        for name in unknown {
            self.fault(&name, &format!("unknown; expected one of {known}"));
        }
    }

    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.table.remove(name)
    }

    fn unexpected<T>(&mut self, name: &str, expected: &str, found: &Value, default: T) -> T {
        self.fault(name, &format!("expected {expected}, found {found}"));
        default
    }

    fn place(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) }
    }
}
