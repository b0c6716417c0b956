//! A rule: what it guards, and how its lock is held.

use std::time::Duration;

use crate::duration::{self, Bounds};
use crate::faults::{Fault, FaultList, Located};
use crate::host::HostPattern;
use crate::raw::RawRule;
use crate::template::{self, KeyTemplate, PathTemplate};

const WAIT: (Duration, Bounds) =
    (Duration::from_secs(10), Bounds { zero: true, max: Duration::from_secs(600), max_text: "10m" });
const HOLD: (Duration, Bounds) =
    (Duration::from_secs(60), Bounds { zero: false, max: Duration::from_secs(3_600), max_text: "1h" });
const LOCK_DELAY: (Duration, Bounds) =
    (Duration::from_secs(15), Bounds { zero: true, max: Duration::from_secs(3_600), max_text: "1h" });

/// The longest configured name, in bytes.
const NAME_MAX_BYTES: usize = 128;
/// The longest method, in bytes.
const METHOD_MAX_BYTES: usize = 32;

/// One rule.
#[derive(Debug)]
pub struct Rule {
    name: String,
    wait: Duration,
    hold: Duration,
    lock_delay: Duration,
    on_lost: OnLost,
    on_host_unavailable: OnHostUnavailable,
    pub(crate) key: KeyTemplate,
}

/// What happens to a request whose lock is lost while the upstream works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnLost {
    /// It is aborted before another request is let in.
    #[default]
    Abort,
    /// It goes on, although another request may be let in.
    Continue,
}

/// What happens to a request when no host answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnHostUnavailable {
    /// It is rejected.
    #[default]
    Deny,
    /// It goes to the upstream without a lock.
    Allow,
}

impl Rule {
    /// Unique among the rules of a set: the configured name, or else what the rule matches (`POST /a/{id}`). Printable
    /// ASCII.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long a request waits for the lock, at most 10 minutes; zero is "try".
    pub fn wait(&self) -> Duration {
        self.wait
    }

    /// The longest hold: above zero, at most 1 hour.
    pub fn hold(&self) -> Duration {
        self.hold
    }

    /// Quarantine of the key after a hold that ended uncleanly, at most 1 hour.
    pub fn lock_delay(&self) -> Duration {
        self.lock_delay
    }

    /// What happens when the lock is lost.
    pub fn on_lost(&self) -> OnLost {
        self.on_lost
    }

    /// What happens when no host answers.
    pub fn on_host_unavailable(&self) -> OnHostUnavailable {
        self.on_host_unavailable
    }
}

/// Which requests a rule is for.
#[derive(Debug)]
pub(crate) struct Match {
    pub(crate) host: HostPattern,
    pub(crate) methods: Methods,
    pub(crate) path: PathTemplate,
}

/// Which methods a rule is for.
#[derive(Debug)]
pub(crate) enum Methods {
    Any,
    Named(Vec<Box<str>>),
}

/// Parses one rule. All its faults are collected; `None` if there are any.
pub(crate) fn parse(raw: &RawRule<'_>, faults: &mut FaultList) -> Option<(Match, Rule)> {
    let host = match &raw.host {
        Some(source) => faults.keep(HostPattern::parse(source)),
        None => Some(HostPattern::Any),
    };
    let methods = raw.methods.as_ref().and_then(|sources| parse_methods(sources, faults));
    let path = raw.path.as_ref().and_then(|source| PathTemplate::parse(source, faults));
    let key = raw.key.as_ref().and_then(|source| KeyTemplate::parse(source, path.as_ref(), faults));
    let mut duration = |source: &Option<Located<'_>>, (default, bounds): (Duration, Bounds)| match source {
        Some(source) => faults.keep(duration::parse(source, bounds)),
        None => Some(default),
    };
    let wait = duration(&raw.wait, WAIT);
    let hold = duration(&raw.hold, HOLD);
    let lock_delay = duration(&raw.lock_delay, LOCK_DELAY);
    let on_lost = choice(&raw.on_lost, [("abort", OnLost::Abort), ("continue", OnLost::Continue)]);
    let on_lost = faults.keep(on_lost);
    let choices = [("deny", OnHostUnavailable::Deny), ("allow", OnHostUnavailable::Allow)];
    let on_host_unavailable = faults.keep(choice(&raw.on_host_unavailable, choices));
    let name = match &raw.name {
        Some(source) => faults.keep(parse_name(source)),
        None => Some(default_name(raw)),
    };
    let matched = Match { host: host?, methods: methods?, path: path? };
    let rule = Rule {
        name: name?,
        wait: wait?,
        hold: hold?,
        lock_delay: lock_delay?,
        on_lost: on_lost?,
        on_host_unavailable: on_host_unavailable?,
        key: key?,
    };
    Some((matched, rule))
}

fn parse_methods(sources: &[Located<'_>], faults: &mut FaultList) -> Option<Methods> {
    if let [only] = sources
        && only.text == "*"
    {
        return Some(Methods::Any);
    }
    let mut methods: Vec<Box<str>> = Vec::new();
    let mut is_good = true;
    for source in sources {
        let outcome = match parse_method(source) {
            Ok(method) if methods.iter().any(|earlier| **earlier == *method) => {
                Err(source.fault(0, format!("the method {method} is there twice")))
            }
            outcome => outcome,
        };
        match faults.keep(outcome) {
            Some(method) => methods.push(method.into()),
            None => is_good = false,
        }
    }
    is_good.then_some(Methods::Named(methods))
}

fn parse_method<'a>(source: &Located<'a>) -> Result<&'a str, Fault> {
    const USUAL: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let method = source.text;
    if method == "*" {
        return Err(source.fault(0, "'*' is every method and stands alone"));
    }
    if method.is_empty() || method.len() > METHOD_MAX_BYTES || !method.bytes().all(template::is_token_byte) {
        return Err(source.fault(0, "expected a method such as POST, or '*' for every method"));
    }
    match USUAL.iter().find(|usual| usual.eq_ignore_ascii_case(method)) {
        Some(usual) if *usual != method => {
            Err(source.fault(0, format!("methods are written in capitals: expected {usual}, found {method}")))
        }
        _ => Ok(method),
    }
}

fn choice<T: Copy + Default, const N: usize>(
    source: &Option<Located<'_>>,
    choices: [(&str, T); N],
) -> Result<T, Fault> {
    let Some(source) = source else {
        return Ok(T::default());
    };
    match choices.iter().find(|(text, _)| *text == source.text) {
        Some((_, value)) => Ok(*value),
        None => Err(source.fault(0, format!("expected {}", choices.map(|(text, _)| text).join(" or ")))),
    }
}

fn parse_name(source: &Located<'_>) -> Result<String, Fault> {
    let name = source.text;
    if name.is_empty() || name.len() > NAME_MAX_BYTES || name.trim() != name {
        return Err(
            source.fault(0, format!("a name has 1 to {NAME_MAX_BYTES} characters, none of the outer ones a space"))
        );
    }
    match name.find(|c: char| !c.is_ascii_graphic() && c != ' ') {
        Some(at) => Err(source.fault(at, "a name has only printable ASCII characters")),
        None => Ok(name.to_owned()),
    }
}

fn default_name(raw: &RawRule<'_>) -> String {
    let methods: Vec<&str> = raw.methods.iter().flatten().map(|method| method.text).collect();
    let host = raw.host.as_ref().map_or("", |host| host.text);
    let path = raw.path.as_ref().map_or("", |path| path.text);
    let text = format!("{} {host}{path}", methods.join(","));
    text.chars().map(|c| if c.is_ascii() { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}
