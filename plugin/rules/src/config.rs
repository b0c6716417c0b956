//! The filter's configuration and the rules file: text into rules, and rules into the filter's JSON.

use serde_json::{Value, json};

use crate::faults::{Fault, FaultList, Faults, Located};
use crate::json::{Fields, Json};
use crate::raw::{RawRule, texts_of};
use crate::{CLUSTERS_MAX, RuleSet};

const FIELDS: [&str; 4] = ["cluster", "clusters", "namespace", "rules"];
const NAMESPACE_DEFAULT: &str = "default";
const NAMESPACE_MAX_BYTES: usize = 64;
const CLUSTER_MAX_BYTES: usize = 256;

/// The configuration of one filter.
#[derive(Debug)]
pub struct FilterConfig {
    /// The Envoy clusters of the hosts, one each: 1 to [`CLUSTERS_MAX`], no two of them equal.
    pub clusters: Vec<String>,
    /// The namespace of all lock keys; the keys of [`Decision::Guarded`](crate::Decision::Guarded) carry it already.
    pub namespace: String,
    /// The rules.
    pub rules: RuleSet,
}

impl FilterConfig {
    /// Parses the JSON that the filter is configured with.
    ///
    /// # Errors
    /// Everything that is unknown, missing or contradictory, all of it together, each with its place.
    pub fn parse(json: &[u8]) -> Result<Self, Faults> {
        let json = Json::parse(json)?;
        let mut faults = FaultList::default();
        let config = Self::from_json(&json, &mut faults);
        faults.into_result(config)
    }

    fn from_json(json: &Json, faults: &mut FaultList) -> Option<Self> {
        let fields = Fields::new("", json, &FIELDS, faults)?;
        let clusters = take_clusters(&fields, faults);
        let namespace = match fields.text("namespace", faults) {
            Some(source) => faults.keep(parse_namespace(&source)),
            None => Some(NAMESPACE_DEFAULT.to_owned()),
        };
        let raw = match fields.get("rules") {
            Some(Json::List(items)) => raw_rules(items),
            Some(other) => {
                faults.add("rules", format!("expected a list of rules, found {}", other.kind()));
                return None;
            }
            None => {
                faults.add("rules", "missing; expected a list of rules");
                return None;
            }
        };
        let rules = RuleSet::build(namespace.as_deref().unwrap_or(NAMESPACE_DEFAULT), raw, faults);
        Some(Self { clusters: clusters?, namespace: namespace?, rules })
    }
}

/// The filter configuration for these rules, each a line (a JSON string) or an object.
///
/// # Errors
/// Those of [`FilterConfig::parse`], which the result is checked with.
pub fn filter_config_json(cluster: &str, namespace: &str, rules: &[Value]) -> Result<String, Faults> {
    let json = json!({ "cluster": cluster, "namespace": namespace, "rules": rules }).to_string();
    FilterConfig::parse(json.as_bytes()).map(|_| json)
}

/// Parses a rules file: one rule a line, `#` begins a comment; or a JSON array of rules. What is returned fits
/// [`filter_config_json`].
///
/// # Errors
/// All faults of the rules, with the number of the line.
pub fn parse_rules_file(text: &str) -> Result<Vec<Value>, Faults> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut faults = FaultList::default();
    if text.trim_start().starts_with(['[', '{']) {
        let Json::List(items) = Json::parse(text.as_bytes())? else {
            return Err(Faults::one("", "expected a JSON array of rules, or one rule a line"));
        };
        RuleSet::build(NAMESPACE_DEFAULT, raw_rules(&items), &mut faults);
        return faults.into_result(serde_json::from_str(text).ok());
    }
    let lines = text.lines().map(without_comment).enumerate().filter(|(_, line)| !line.trim().is_empty());
    let lines: Vec<(String, &str)> = lines.map(|(index, line)| (format!("line {}", index + 1), line)).collect();
    let raw = lines.iter().map(|(place, line)| RawRule::from_line(&Located::new(place, line))).collect();
    RuleSet::build(NAMESPACE_DEFAULT, raw, &mut faults);
    faults.into_result(Some(lines.iter().map(|(_, line)| Value::from(line.trim())).collect()))
}

fn raw_rules(items: &[Json]) -> Vec<RawRule<'_>> {
    items.iter().enumerate().map(|(index, json)| RawRule::from_json(&format!("rules[{index}]"), json)).collect()
}

/// Cuts a comment off: a `#` at the start of a word.
fn without_comment(line: &str) -> &str {
    let mut previous = ' ';
    for (at, c) in line.char_indices() {
        if c == '#' && matches!(previous, ' ' | '\t') {
            return line.get(..at).unwrap_or(line);
        }
        previous = c;
    }
    line
}

/// The one `cluster`, or the list of `clusters`.
fn take_clusters(fields: &Fields<'_>, faults: &mut FaultList) -> Option<Vec<String>> {
    match (fields.get("cluster"), fields.get("clusters")) {
        (None, None) => {
            let message = "missing; expected the name of the host's cluster in Envoy, as in \"turnstile_host\"; \
                           or several of them as a list, clusters";
            faults.add("cluster", message);
            None
        }
        (Some(_), None) => {
            let name = fields.text("cluster", faults)?;
            Some(vec![faults.keep(parse_cluster(&name))?])
        }
        (Some(_), Some(_)) => {
            faults.add("clusters", "given beside cluster; a filter has one of the two");
            None
        }
        (None, Some(Json::List(names))) if !names.is_empty() => parse_clusters(names, faults),
        (None, Some(_)) => {
            let message = "expected a list of the names of hosts' clusters in Envoy, as in \
                           [\"turnstile_host_0\", \"turnstile_host_1\"]";
            faults.add("clusters", message);
            None
        }
    }
}

fn parse_clusters(names: &[Json], faults: &mut FaultList) -> Option<Vec<String>> {
    if names.len() > CLUSTERS_MAX {
        faults.add("clusters", format!("{} clusters; at most {CLUSTERS_MAX}", names.len()));
        return None;
    }
    let mut clusters: Vec<String> = Vec::with_capacity(names.len());
    for source in texts_of("clusters", names, faults)? {
        match faults.keep(parse_cluster(&source)) {
            Some(name) if clusters.contains(&name) => faults.push(source.fault(0, "this cluster is there twice")),
            Some(name) => clusters.push(name),
            None => {}
        }
    }
    Some(clusters)
}

fn parse_cluster(source: &Located<'_>) -> Result<String, Fault> {
    let name = source.text;
    if name.is_empty() || name.len() > CLUSTER_MAX_BYTES || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(source.fault(0, format!("a cluster's name is 1 to {CLUSTER_MAX_BYTES} visible ASCII characters")));
    }
    Ok(name.to_owned())
}

fn parse_namespace(source: &Located<'_>) -> Result<String, Fault> {
    let name = source.text;
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > NAMESPACE_MAX_BYTES || !name.bytes().all(is_fine) {
        let message = format!("a namespace is 1 to {NAMESPACE_MAX_BYTES} letters, digits, '.', '_' and '-'");
        return Err(source.fault(0, message));
    }
    Ok(name.to_owned())
}
