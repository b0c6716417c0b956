//! The two ways to write a rule, as a line and as an object, taken apart into the same located texts.

use crate::faults::{FaultList, Located};
use crate::json::{Fields, Json};

const OPTIONS: [&str; 7] = ["key", "wait", "hold", "lock_delay", "on_lost", "on_host_unavailable", "name"];
const OBJECT_FIELDS: [&str; 8] =
    ["name", "match", "key", "wait", "hold", "lock_delay", "on_lost", "on_host_unavailable"];
const MATCH_FIELDS: [&str; 3] = ["host", "methods", "path"];
const LINE_FORM: &str = "METHOD[,METHOD...] [HOST]/PATH key=TEMPLATE [OPTION=VALUE...]";

/// A rule's texts, not looked into yet. What must be there and is not has been told as a fault.
#[derive(Default)]
pub(crate) struct RawRule<'a> {
    /// Names the rule in faults.
    pub(crate) place: String,
    /// What is wrong with the rule so far.
    pub(crate) faults: FaultList,
    pub(crate) host: Option<Located<'a>>,
    pub(crate) methods: Option<Vec<Located<'a>>>,
    pub(crate) path: Option<Located<'a>>,
    pub(crate) key: Option<Located<'a>>,
    pub(crate) name: Option<Located<'a>>,
    pub(crate) wait: Option<Located<'a>>,
    pub(crate) hold: Option<Located<'a>>,
    pub(crate) lock_delay: Option<Located<'a>>,
    pub(crate) on_lost: Option<Located<'a>>,
    pub(crate) on_host_unavailable: Option<Located<'a>>,
}

impl<'a> RawRule<'a> {
    /// A rule of the configuration's list.
    pub(crate) fn from_json(place: &str, json: &'a Json) -> Self {
        let mut faults = FaultList::default();
        let raw = match json {
            Json::Text(line) => return Self::from_line(&Located::new(place, line)),
            Json::Object(_) => Self::take_object(place, json, &mut faults),
            other => {
                faults.add(place, format!("expected a line (a string) or an object, found {}", other.kind()));
                Self::default()
            }
        };
        Self { place: place.to_owned(), faults, ..raw }
    }

    /// `METHOD[,METHOD...] [HOST]/PATH key=TEMPLATE [OPTION=VALUE...]`.
    pub(crate) fn from_line(line: &Located<'a>) -> Self {
        let mut faults = FaultList::default();
        let raw = Self::take_line(line, &mut faults);
        Self { place: line.place.clone(), faults, ..raw }
    }

    fn take_line(line: &Located<'a>, faults: &mut FaultList) -> Self {
        let mut raw = Self::default();
        let mut words = words(line).into_iter().peekable();
        let end = line.part(line.text.len(), line.text.len());
        let is_target = |word: &Located<'_>| word.text.contains('/') && !is_option(word.text);
        match words.next_if(|word| !is_target(word)) {
            Some(methods) => raw.methods = Some(split_methods(&methods)),
            None => match words.peek() {
                Some(target) => faults.push(target.fault(0, format!("the methods are missing; expected {LINE_FORM}"))),
                None => {
                    faults.push(line.fault(0, format!("an empty rule; expected {LINE_FORM}")));
                    return raw;
                }
            },
        }
        match words.next_if(|word| is_target(word)) {
            Some(target) => {
                let path_at = target.text.find('/').unwrap_or(0);
                raw.host = (path_at > 0).then(|| target.part(0, path_at));
                raw.path = Some(target.part(path_at, target.text.len()));
            }
            None => {
                let found = words.next_if(|word| !word.text.contains('=')).or_else(|| words.peek().cloned());
                let message = "expected a path template after the methods, as in POST /accounts/{id}";
                faults.push(found.unwrap_or(end).fault(0, message));
            }
        }
        for option in words {
            raw.take_option(&option, faults);
        }
        if raw.key.is_none() {
            faults.push(line.fault(line.text.len(), "the key is missing: expected key=TEMPLATE"));
        }
        raw
    }

    fn take_option(&mut self, option: &Located<'a>, faults: &mut FaultList) {
        let Some((name, value)) = option.split_once('=') else {
            return faults
                .push(option.fault(0, format!("expected OPTION=VALUE, OPTION one of {}", OPTIONS.join(", "))));
        };
        let slot = match name.text {
            "key" => &mut self.key,
            "wait" => &mut self.wait,
            "hold" => &mut self.hold,
            "lock_delay" => &mut self.lock_delay,
            "on_lost" => &mut self.on_lost,
            "on_host_unavailable" => &mut self.on_host_unavailable,
            "name" => &mut self.name,
            _ => {
                return faults.push(name.fault(0, format!("unknown option; expected one of {}", OPTIONS.join(", "))));
            }
        };
        match slot {
            Some(_) => faults.push(name.fault(0, format!("{} is given twice", name.text))),
            None => *slot = Some(value),
        }
    }

    fn take_object(place: &str, json: &'a Json, faults: &mut FaultList) -> Self {
        let Some(fields) = Fields::new(place, json, &OBJECT_FIELDS, faults) else { return Self::default() };
        let mut raw = Self { name: fields.text("name", faults), ..Self::default() };
        match fields.get("match") {
            Some(json) => raw.take_match(&fields.place_of("match"), json, faults),
            None => faults.add(fields.place_of("match"), "missing; expected an object with host, methods, path"),
        }
        if fields.get("key").is_none() {
            faults.add(fields.place_of("key"), "missing; expected a key template, as in \"account:{id}\"");
        }
        raw.key = fields.text("key", faults);
        raw.wait = fields.text("wait", faults);
        raw.hold = fields.text("hold", faults);
        raw.lock_delay = fields.text("lock_delay", faults);
        raw.on_lost = fields.text("on_lost", faults);
        raw.on_host_unavailable = fields.text("on_host_unavailable", faults);
        raw
    }

    fn take_match(&mut self, place: &str, json: &'a Json, faults: &mut FaultList) {
        let Some(fields) = Fields::new(place, json, &MATCH_FIELDS, faults) else {
            return;
        };
        self.host = fields.text("host", faults);
        let methods_place = fields.place_of("methods");
        match fields.get("methods") {
            Some(Json::List(methods)) if !methods.is_empty() => {
                self.methods = methods_of(&methods_place, methods, faults);
            }
            _ => faults.add(methods_place, "expected a list of methods, as in [\"POST\"], or [\"*\"] for every method"),
        }
        if fields.get("path").is_none() {
            faults.add(fields.place_of("path"), "missing; expected a path template, as in \"/accounts/{id}\"");
        }
        self.path = fields.text("path", faults);
    }
}

fn methods_of<'a>(place: &str, methods: &'a [Json], faults: &mut FaultList) -> Option<Vec<Located<'a>>> {
    let mut located = Vec::new();
    for (index, method) in methods.iter().enumerate() {
        let place = format!("{place}[{index}]");
        match method {
            Json::Text(method) => located.push(Located::new(place, method)),
            other => faults.add(place, format!("expected a string, found {}", other.kind())),
        }
    }
    (located.len() == methods.len()).then_some(located)
}

fn split_methods<'a>(methods: &Located<'a>) -> Vec<Located<'a>> {
    let mut start = 0;
    let parts = methods.text.split(',').map(|text| {
        let end = start + text.len();
        let method = methods.part(start, end);
        start = end + 1;
        method
    });
    parts.collect()
}

/// The words of a line, which spaces and tabs part.
fn words<'a>(line: &Located<'a>) -> Vec<Located<'a>> {
    let mut words = Vec::new();
    let mut at = 0;
    for word in line.text.split([' ', '\t']) {
        if !word.is_empty() {
            words.push(line.part(at, at + word.len()));
        }
        at += word.len() + 1;
    }
    words
}

/// Whether a word is an option, and so no target: `key=a/{id}` has a slash too.
fn is_option(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| OPTIONS.contains(&name))
}
