//! Named fields of a configuration file or of a request's body, read one by one, so that every fault can be collected.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

/// Characters of a wrong value that are shown.
const FOUND_MAX: usize = 80;

/// What is wrong, and where.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) place: String,
    pub(crate) problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)
    }
}

/// Fields that are taken out one by one; what is left in the end is unknown, and a fault.
pub(crate) struct Section<'a> {
    path: String,
    fields: Map<String, Value>,
    known: Vec<&'static str>,
    faults: &'a mut Vec<Fault>,
}

impl<'a> Section<'a> {
    pub(crate) fn root(fields: Map<String, Value>, faults: &'a mut Vec<Fault>) -> Self {
        Self { path: String::new(), fields, known: Vec::new(), faults }
    }

    /// Reads a section below this one; an absent one reads as empty.
    pub(crate) fn section<T>(&mut self, name: &'static str, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let value = self.take(name);
        self.below(name, value, read)
    }

    /// Reads a section below this one, if there is any.
    pub(crate) fn section_if_any<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> Option<T> {
        let value = self.take(name)?;
        Some(self.below(name, Some(value), read))
    }

    /// Reads a list of sections; an absent one reads as empty.
    pub(crate) fn list<T>(&mut self, name: &'static str, mut read: impl FnMut(&mut Section<'_>) -> T) -> Vec<T> {
        let values = match self.take(name) {
            None => Vec::new(),
            Some(Value::Array(values)) => values,
            Some(other) => {
                self.unexpected(name, "a list", &other);
                Vec::new()
            }
        };
        let places = (0..).map(|index: usize| format!("{name}[{index}]"));
        values.into_iter().zip(places).map(|(value, place)| self.below(&place, Some(value), &mut read)).collect()
    }

    fn below<T>(&mut self, name: &str, value: Option<Value>, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let fields = match value {
            None => Map::new(),
            Some(Value::Object(fields)) => fields,
            Some(other) => {
                self.unexpected(name, "named fields", &other);
                Map::new()
            }
        };
        let mut section = Section { path: self.place(name), fields, known: Vec::new(), faults: self.faults };
        let result = read(&mut section);
        section.finish();
        result
    }

    pub(crate) fn text(&mut self, name: &'static str, default: &str) -> String {
        let parse = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(Into::into);
        self.read(name, "a text that is not empty", parse).unwrap_or_else(|| default.into())
    }

    /// An empty text names no file.
    pub(crate) fn file(&mut self, name: &'static str) -> Option<PathBuf> {
        let path = self.read(name, "the name of a file, or \"\" for none", |value| value.as_str().map(PathBuf::from));
        path.filter(|path| !path.as_os_str().is_empty())
    }

    pub(crate) fn flag(&mut self, name: &'static str, default: bool) -> bool {
        self.read(name, "true or false", Value::as_bool).unwrap_or(default)
    }

    pub(crate) fn address(&mut self, name: &'static str, default: SocketAddr) -> SocketAddr {
        let expected = "an address with a port such as \"127.0.0.1:7878\"";
        self.read(name, expected, |value| value.as_str()?.parse().ok()).unwrap_or(default)
    }

    pub(crate) fn count(&mut self, name: &'static str, default: usize, range: RangeInclusive<usize>) -> usize {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let parse = |value: &Value| {
            let count = usize::try_from(value.as_u64()?).ok();
            count.filter(|count| range.contains(count))
        };
        self.read(name, &expected, parse).unwrap_or(default)
    }

    pub(crate) fn duration(
        &mut self,
        name: &'static str,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let show = |duration: &Duration| humantime::format_duration(*duration).to_string();
        let expected = format!(
            "a duration from \"{}\" to \"{}\", such as \"1s\" or \"250ms\"",
            show(range.start()),
            show(range.end())
        );
        let parse = |value: &Value| {
            let duration = humantime::parse_duration(value.as_str()?).ok();
            duration.filter(|duration| range.contains(duration))
        };
        self.read(name, &expected, parse).unwrap_or(default)
    }

    /// Reads a field of any kind; `None` if it is absent, or not as expected.
    pub(crate) fn read<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        parse: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.take(name)?;
        let parsed = parse(&value);
        if parsed.is_none() {
            self.unexpected(name, expected, &value);
        }
        parsed
    }

    /// As [`read`](Self::read), and a fault if it is absent.
    pub(crate) fn required<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        parse: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        if !self.fields.contains_key(name) {
            self.fault(name, &format!("is missing; expected {expected}"));
        }
        self.read(name, expected, parse)
    }

    /// Reports a fault of the field `name`.
    pub(crate) fn fault(&mut self, name: &str, problem: &str) {
        let place = self.place(name);
        self.faults.push(Fault { place, problem: problem.into() });
    }

    /// Reports what nobody asked for.
    pub(crate) fn finish(&mut self) {
        let unknown: Vec<String> = std::mem::take(&mut self.fields).into_iter().map(|(name, _)| name).collect();
        let known = self.known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        for name in unknown {
            self.fault(&name, &format!("unknown; expected one of {known}"));
        }
    }

    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.fields.remove(name)
    }

    fn unexpected(&mut self, name: &str, expected: &str, found: &Value) {
        let mut found = found.to_string();
        if let Some((cut, _)) = found.char_indices().nth(FOUND_MAX) {
            found.truncate(cut);
            found.push_str("...");
        }
        self.fault(name, &format!("expected {expected}, found {found}"));
    }

    fn place(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) }
    }
}
