//! A rule: what it guards, and how its lock is held.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::KEYS_MAX;
use crate::duration::{self, Bounds};
use crate::faults::{Fault, FaultList, Located};
use crate::host::HostPattern;
use crate::mode::Mode;
use crate::number;
use crate::raw::RawRule;
use crate::template::{self, KeyTemplate, PathTemplate};

const WAIT: (Duration, Bounds) =
    (Duration::from_secs(10), Bounds { zero: true, max: Duration::from_secs(600), max_text: "10m" });
const HOLD: (Duration, Bounds) =
    (Duration::from_secs(60), Bounds { zero: false, max: Duration::from_secs(3_600), max_text: "1h" });
const LOCK_DELAY: (Duration, Bounds) =
    (Duration::from_secs(15), Bounds { zero: true, max: Duration::from_secs(3_600), max_text: "1h" });

/// The largest `queue`.
const QUEUE_MAX: u32 = 1_000_000;
/// The longest configured name, in bytes.
const NAME_MAX_BYTES: usize = 128;
const ON_OFF: [(&str, bool); 2] = [("on", true), ("off", false)];
/// The longest method, in bytes.
const METHOD_MAX_BYTES: usize = 32;

/// One rule.
#[derive(Debug)]
pub struct Rule {
    name: String,
    wait: Duration,
    queue: Option<NonZeroU32>,
    fail_fast: bool,
    hold: Duration,
    lock_delay: Duration,
    reentrant: bool,
    on_lost: OnLost,
    on_host_unavailable: OnHostUnavailable,
    /// 1 to [`KEYS_MAX`].
    pub(crate) keys: Vec<RuleKey>,
}

/// One key of a rule.
#[derive(Debug)]
pub(crate) struct RuleKey {
    pub(crate) template: KeyTemplate,
    pub(crate) mode: Mode,
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

    /// A request is rejected at once if so many wait for one of its keys already; `None` for the host's own limit. At
    /// most a million.
    pub fn queue(&self) -> Option<NonZeroU32> {
        self.queue
    }

    /// Whether a request is rejected at once when its turn is not to be expected within the wait.
    pub fn fail_fast(&self) -> bool {
        self.fail_fast
    }

    /// The longest hold: above zero, at most 1 hour.
    pub fn hold(&self) -> Duration {
        self.hold
    }

    /// Quarantine of the key after a hold that ended uncleanly, at most 1 hour.
    pub fn lock_delay(&self) -> Duration {
        self.lock_delay
    }

    /// Whether requests that bring the holder secret of a live hold join it, instead of waiting for it.
    pub fn reentrant(&self) -> bool {
        self.reentrant
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
    let keys = raw.keys.as_ref().and_then(|sources| parse_keys(sources, path.as_ref(), faults));
    let modes = parse_modes(raw, faults);
    let mut duration = |source: &Option<Located<'_>>, (default, bounds): (Duration, Bounds)| match source {
        Some(source) => faults.keep(duration::parse(source, bounds)),
        None => Some(default),
    };
    let wait = duration(&raw.wait, WAIT);
    let hold = duration(&raw.hold, HOLD);
    let lock_delay = duration(&raw.lock_delay, LOCK_DELAY);
    let queue = raw.queue.as_ref().map(|source| number::parse(source, QUEUE_MAX)).transpose();
    let queue = faults.keep(queue);
    let fail_fast = faults.keep(choice(&raw.fail_fast, ON_OFF));
    let reentrant = faults.keep(choice(&raw.reentrant, ON_OFF));
    let on_lost = choice(&raw.on_lost, [("abort", OnLost::Abort), ("continue", OnLost::Continue)]);
    let on_lost = faults.keep(on_lost);
    let choices = [("deny", OnHostUnavailable::Deny), ("allow", OnHostUnavailable::Allow)];
    let on_host_unavailable = faults.keep(choice(&raw.on_host_unavailable, choices));
    let name = match &raw.name {
        Some(source) => faults.keep(parse_name(source)),
        None => Some(default_name(raw)),
    };
    // One mode is for all keys.
    let keys = keys?.into_iter().zip(modes?.into_iter().cycle());
    let matched = Match { host: host?, methods: methods?, path: path? };
    let rule = Rule {
        name: name?,
        wait: wait?,
        queue: queue?,
        fail_fast: fail_fast?,
        hold: hold?,
        lock_delay: lock_delay?,
        reentrant: reentrant?,
        on_lost: on_lost?,
        on_host_unavailable: on_host_unavailable?,
        keys: keys.map(|(template, mode)| RuleKey { template, mode }).collect(),
    };
    Some((matched, rule))
}

fn parse_keys(
    sources: &[Located<'_>],
    path: Option<&PathTemplate>,
    faults: &mut FaultList,
) -> Option<Vec<KeyTemplate>> {
    if let Some(surplus) = sources.get(KEYS_MAX) {
        faults.push(surplus.fault(0, format!("a rule has at most {KEYS_MAX} keys")));
        return None;
    }
    let mut keys: Vec<KeyTemplate> = Vec::new();
    for source in sources {
        let Some(key) = KeyTemplate::parse(source, path, faults) else { continue };
        // Without a good path template, all its parameters look alike.
        if path.is_some() && keys.contains(&key) {
            faults.push(source.fault(0, "this key is there twice"));
        } else {
            keys.push(key);
        }
    }
    (keys.len() == sources.len()).then_some(keys)
}

/// One mode for all keys, or one for each.
fn parse_modes(raw: &RawRule<'_>, faults: &mut FaultList) -> Option<Vec<Mode>> {
    let Some(sources) = &raw.modes else { return Some(vec![Mode::default()]) };
    let keys = raw.keys.as_ref().map(Vec::len);
    let modes: Vec<Mode> = sources.iter().filter_map(|source| faults.keep(Mode::parse(source))).collect();
    if let ([first, _, ..], Some(keys)) = (sources.as_slice(), keys)
        && sources.len() != keys
    {
        let message = format!("{} modes for {keys} keys; expected one for all, or one for each", sources.len());
        faults.push(first.fault(0, message));
        return None;
    }
    (modes.len() == sources.len()).then_some(modes)
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
