//! The two ways to write a rule, as a line and as an object, taken apart into the same located texts.

use crate::faults::{FaultList, Located};
use crate::json::{Fields, Json};

const OPTIONS: [&str; 11] = [
    "key",
    "mode",
    "wait",
    "queue",
    "fail_fast",
    "hold",
    "lock_delay",
    "reentrant",
    "on_lost",
    "on_host_unavailable",
    "name",
];
const OBJECT_FIELDS: [&str; 13] = [
    "name",
    "match",
    "key",
    "keys",
    "mode",
    "wait",
    "queue",
    "fail_fast",
    "hold",
    "lock_delay",
    "reentrant",
    "on_lost",
    "on_host_unavailable",
];
const MATCH_FIELDS: [&str; 3] = ["host", "methods", "path"];
const LINE_FORM: &str = "METHOD[,METHOD...] [HOST]/PATH key=TEMPLATE[,TEMPLATE...] [OPTION=VALUE...]";

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
    pub(crate) keys: Option<Vec<Located<'a>>>,
    pub(crate) modes: Option<Vec<Located<'a>>>,
    pub(crate) name: Option<Located<'a>>,
    pub(crate) wait: Option<Located<'a>>,
    pub(crate) queue: Option<Located<'a>>,
    pub(crate) fail_fast: Option<Located<'a>>,
    pub(crate) hold: Option<Located<'a>>,
    pub(crate) lock_delay: Option<Located<'a>>,
    pub(crate) reentrant: Option<Located<'a>>,
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

    /// As [`LINE_FORM`] says.
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
            Some(methods) => raw.methods = Some(split_list(&methods)),
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
        if raw.keys.is_none() {
            faults.push(line.fault(line.text.len(), "the key is missing: expected key=TEMPLATE"));
        }
        raw
    }

    fn take_option(&mut self, option: &Located<'a>, faults: &mut FaultList) {
        let Some((name, value)) = option.split_once('=') else {
            return faults
                .push(option.fault(0, format!("expected OPTION=VALUE, OPTION one of {}", OPTIONS.join(", "))));
        };
        let is_new = match name.text {
            "key" => put(&mut self.keys, split_keys(&value)),
            "mode" => put(&mut self.modes, split_list(&value)),
            "wait" => put(&mut self.wait, value),
            "queue" => put(&mut self.queue, value),
            "fail_fast" => put(&mut self.fail_fast, value),
            "hold" => put(&mut self.hold, value),
            "lock_delay" => put(&mut self.lock_delay, value),
            "reentrant" => put(&mut self.reentrant, value),
            "on_lost" => put(&mut self.on_lost, value),
            "on_host_unavailable" => put(&mut self.on_host_unavailable, value),
            "name" => put(&mut self.name, value),
            _ => {
                return faults.push(name.fault(0, format!("unknown option; expected one of {}", OPTIONS.join(", "))));
            }
        };
        if !is_new {
            faults.push(name.fault(0, format!("{} is given twice", name.text)));
        }
    }

    fn take_object(place: &str, json: &'a Json, faults: &mut FaultList) -> Self {
        let Some(fields) = Fields::new(place, json, &OBJECT_FIELDS, faults) else { return Self::default() };
        let mut raw = Self { name: fields.text("name", faults), ..Self::default() };
        match fields.get("match") {
            Some(json) => raw.take_match(&fields.place_of("match"), json, faults),
            None => faults.add(fields.place_of("match"), "missing; expected an object with host, methods, path"),
        }
        raw.take_keys(&fields, faults);
        raw.wait = fields.text("wait", faults);
        raw.queue = fields.text("queue", faults);
        raw.fail_fast = fields.text("fail_fast", faults);
        raw.hold = fields.text("hold", faults);
        raw.lock_delay = fields.text("lock_delay", faults);
        raw.reentrant = fields.text("reentrant", faults);
        raw.on_lost = fields.text("on_lost", faults);
        raw.on_host_unavailable = fields.text("on_host_unavailable", faults);
        raw
    }

    fn take_keys(&mut self, fields: &Fields<'a>, faults: &mut FaultList) {
        match (fields.get("key"), fields.get("keys")) {
            (None, None) => {
                faults.add(fields.place_of("key"), "missing; expected a key template, as in \"account:{id}\"");
            }
            (Some(_), None) => self.keys = fields.text("key", faults).map(|key| vec![key]),
            (Some(_), Some(_)) => faults.add(fields.place_of("keys"), "given beside key; a rule has one of the two"),
            (None, Some(Json::List(keys))) if !keys.is_empty() => {
                self.keys = texts_of(&fields.place_of("keys"), keys, faults);
            }
            (None, Some(_)) => {
                let message = "expected a list of key templates, as in [\"account:{from}\", \"account:{to}\"]";
                faults.add(fields.place_of("keys"), message);
            }
        }
        let mode_place = fields.place_of("mode");
        match fields.get("mode") {
            None => {}
            Some(Json::Text(mode)) => self.modes = Some(vec![Located::new(mode_place, mode)]),
            Some(Json::List(modes)) if !modes.is_empty() => self.modes = texts_of(&mode_place, modes, faults),
            Some(_) => faults.add(mode_place, "expected a mode, or a list of modes, one for each key"),
        }
    }

    fn take_match(&mut self, place: &str, json: &'a Json, faults: &mut FaultList) {
        let Some(fields) = Fields::new(place, json, &MATCH_FIELDS, faults) else {
            return;
        };
        self.host = fields.text("host", faults);
        let methods_place = fields.place_of("methods");
        match fields.get("methods") {
            Some(Json::List(methods)) if !methods.is_empty() => {
                self.methods = texts_of(&methods_place, methods, faults);
            }
            _ => faults.add(methods_place, "expected a list of methods, as in [\"POST\"], or [\"*\"] for every method"),
        }
        if fields.get("path").is_none() {
            faults.add(fields.place_of("path"), "missing; expected a path template, as in \"/accounts/{id}\"");
        }
        self.path = fields.text("path", faults);
    }
}

/// Fills an option that was not given before.
fn put<T>(slot: &mut Option<T>, value: T) -> bool {
    let is_new = slot.is_none();
    slot.get_or_insert(value);
    is_new
}

/// The strings of a list, each at its own place.
pub(crate) fn texts_of<'a>(place: &str, items: &'a [Json], faults: &mut FaultList) -> Option<Vec<Located<'a>>> {
    let mut located = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let place = format!("{place}[{index}]");
        match item {
            Json::Text(text) => located.push(Located::new(place, text)),
            other => faults.add(place, format!("expected a string, found {}", other.kind())),
        }
    }
    (located.len() == items.len()).then_some(located)
}

/// The parts of a list that commas part.
fn split_list<'a>(list: &Located<'a>) -> Vec<Located<'a>> {
    split_at(list, list.text.match_indices(',').map(|(at, _)| at))
}

/// The key templates of a list. A comma within braces belongs to the name of a query parameter.
fn split_keys<'a>(list: &Located<'a>) -> Vec<Located<'a>> {
    let mut commas = Vec::new();
    let mut at = 0;
    while let Some(rest) = list.text.get(at..).filter(|rest| !rest.is_empty()) {
        at += match rest.chars().next() {
            Some('{') if rest.starts_with("{{") => 2,
            Some('{') => rest.find('}').map_or(rest.len(), |end| end + 1),
            Some(',') => {
                commas.push(at);
                1
            }
            c => c.map_or(1, char::len_utf8),
        };
    }
    split_at(list, commas.into_iter())
}

fn split_at<'a>(list: &Located<'a>, commas: impl Iterator<Item = usize>) -> Vec<Located<'a>> {
    let mut start = 0;
    let ends = commas.chain([list.text.len()]);
    ends.map(|end| list.part(core::mem::replace(&mut start, end + 1), end)).collect()
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
