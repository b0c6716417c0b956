//! JSON as the configuration needs it: an object keeps every entry, so that a key given twice is seen.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::faults::{FaultList, Faults, Located};

/// A JSON value.
#[derive(Clone, Debug)]
pub(crate) enum Json {
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
    /// Anything else, which no part of a configuration is.
    Other(&'static str),
}

impl Json {
    /// Parses a whole document.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, Faults> {
        serde_json::from_slice(json).map_err(|error| Faults::one("", format!("not valid JSON: {error}")))
    }

    /// What kind of value it is, with its article.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
            Self::Other(kind) => kind,
        }
    }
}

/// The entries of an object, by name. Entries that are not `known`, or given twice, are faults.
pub(crate) struct Fields<'a> {
    place: String,
    entries: &'a [(String, Json)],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(place: &str, json: &'a Json, known: &[&str], faults: &mut FaultList) -> Option<Self> {
        let Json::Object(entries) = json else {
            faults.add(place, format!("expected an object with {}, found {}", known.join(", "), json.kind()));
            return None;
        };
        let fields = Self { place: place.to_owned(), entries };
        for (index, (name, _)) in entries.iter().enumerate() {
            let is_repeated = entries.iter().take(index).any(|(earlier, _)| earlier == name);
            if !known.contains(&name.as_str()) {
                faults.add(fields.place_of(name), format!("unknown; expected one of {}", known.join(", ")));
            } else if is_repeated {
                faults.add(fields.place_of(name), "given twice");
            }
        }
        Some(fields)
    }

    pub(crate) fn place_of(&self, name: &str) -> String {
        if self.place.is_empty() { name.to_owned() } else { format!("{}.{name}", self.place) }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'a Json> {
        self.entries.iter().find(|(entry, _)| entry == name).map(|(_, value)| value)
    }

    /// A field that must be a string, if it is there.
    pub(crate) fn text(&self, name: &str, faults: &mut FaultList) -> Option<Located<'a>> {
        match self.get(name)? {
            Json::Text(text) => Some(Located::new(self.place_of(name), text)),
            other => {
                faults.add(self.place_of(name), format!("expected a string, found {}", other.kind()));
                None
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Other("null"))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Other("a boolean"))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Other("a number"))
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Json, E> {
        Ok(Json::Other("a number"))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Other("a number"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Json::Object(entries))
    }
}
