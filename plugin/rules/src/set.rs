//! The rules of one filter, and the decision about a request.

use std::borrow::Cow;
use std::sync::Arc;

use crate::KEY_MAX_BYTES;
use crate::faults::FaultList;
use crate::host::host_of;
use crate::keys::LockKeys;
use crate::query;
use crate::raw::RawRule;
use crate::request::{Decision, KeyPart, RequestFault, RequestView};
use crate::routes::{Found, Routes};
use crate::rule::{self, Match, Rule};
use crate::spelling::{self, AMBIGUOUS_MAX_BYTES, Spelling};
use crate::template::{KeyTemplate, Piece};

/// The most rules of one set.
const RULES_MAX: usize = 1_000;

/// The rules of one filter, ready for matching.
#[derive(Debug)]
pub struct RuleSet {
    namespace: String,
    rules: Vec<Arc<Rule>>,
    routes: Routes,
}

impl RuleSet {
    /// The rules, in the order of the configuration.
    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.rules
    }

    /// Decides about one request. Costs no allocation of its own if the request is unguarded and its path is spelled
    /// canonically (letters, digits and `-._~@`, no dot at the start of a segment, no slash at the end).
    pub fn decide(&self, request: &impl RequestView) -> Decision<'_> {
        let target = request.path();
        let spelling = spelling::spelling(&target);
        if spelling == Spelling::NoPath {
            return Decision::Unguarded;
        }
        let method = request.method();
        let authority = if self.routes.need_host() { request.authority() } else { Cow::Borrowed(b"".as_slice()) };
        let host = host_of(&authority);
        match spelling {
            Spelling::NoPath => Decision::Unguarded,
            Spelling::Plain(path) => match self.routes.find(&host, &path, &method) {
                Some(found) => self.lock(&found, &target, request),
                None => Decision::Unguarded,
            },
            Spelling::Ambiguous(reason) => self.decide_ambiguous(&host, &target, &method, reason),
        }
    }

    /// No lock is given for an ambiguous path: it is refused if any reading of it is guarded.
    fn decide_ambiguous(&self, host: &str, target: &[u8], method: &[u8], reason: &'static str) -> Decision<'_> {
        let path_len = target.iter().position(|&byte| byte == b'?').unwrap_or(target.len());
        let found = if path_len > AMBIGUOUS_MAX_BYTES {
            self.routes.find_any(host, method)
        } else {
            spelling::readings(target).find_map(|path| Some(self.routes.find(host, &path, method)?.rule))
        };
        match found.and_then(|index| self.rules.get(index)) {
            Some(rule) => Decision::Refused { rule, fault: RequestFault::AmbiguousPath(reason) },
            None => Decision::Unguarded,
        }
    }

    fn lock(&self, found: &Found<'_>, target: &[u8], request: &impl RequestView) -> Decision<'_> {
        let Some(rule) = self.rules.get(found.rule) else {
            return Decision::Unguarded;
        };
        match self.keys(rule, found, target, request) {
            Ok(keys) => Decision::Guarded { rule, keys },
            Err(fault) => Decision::Refused { rule, fault },
        }
    }

    fn keys(
        &self,
        rule: &Rule,
        found: &Found<'_>,
        target: &[u8],
        request: &impl RequestView,
    ) -> Result<LockKeys, RequestFault> {
        let captured: usize = found.captures.iter().map(|value| value.len()).sum();
        let fixed: usize = rule.keys.iter().map(|key| self.fixed_len(&key.template) + 1).sum();
        let mut keys = LockKeys::with_capacity(fixed + captured);
        for key in &rule.keys {
            keys.push(key.mode, |text| self.push_key(&key.template, found, target, request, text))?;
        }
        Ok(keys)
    }

    fn push_key(
        &self,
        template: &KeyTemplate,
        found: &Found<'_>,
        target: &[u8],
        request: &impl RequestView,
        key: &mut String,
    ) -> Result<(), RequestFault> {
        key.push_str(&self.namespace);
        key.push('/');
        for piece in &template.pieces {
            match piece {
                Piece::Literal(text) => key.push_str(text),
                // The path is in canonical form already, and so are its parts.
                Piece::Path(index) => key.push_str(found.captures.get(*index).copied().unwrap_or_default()),
                Piece::Part(KeyPart::Query(name)) => query::push_parameter(spelling::query_of(target), name, key)?,
                Piece::Part(KeyPart::Header(name)) => query::push_header(request.header(name), name, key)?,
            }
        }
        Ok(())
    }

    /// What a key has of bytes before any value, the namespace included.
    fn fixed_len(&self, template: &KeyTemplate) -> usize {
        self.namespace.len() + 1 + template.literal_len()
    }

    /// Puts rules together; those with faults are left out.
    pub(crate) fn build(namespace: &str, raw: Vec<RawRule<'_>>, faults: &mut FaultList) -> Self {
        let mut set = Self { namespace: namespace.to_owned(), rules: Vec::new(), routes: Routes::default() };
        if raw.is_empty() {
            faults.add("rules", "expected at least one rule");
        }
        if raw.len() > RULES_MAX {
            faults.add("rules", format!("{} rules; at most {RULES_MAX}", raw.len()));
            return set;
        }
        // The places of the rules that are in the set.
        let mut places: Vec<String> = Vec::new();
        for mut raw in raw {
            let mut of_rule = std::mem::take(&mut raw.faults);
            if let Some((matched, rule)) = rule::parse(&raw, &mut of_rule) {
                set.insert(&matched, rule, &raw.place, &places, &mut of_rule);
                places.push(raw.place);
            }
            faults.append_rule(of_rule);
        }
        set
    }

    fn insert(&mut self, matched: &Match, rule: Rule, place: &str, places: &[String], faults: &mut FaultList) {
        let named = |other: usize| {
            let name = self.rules.get(other).map_or("", |rule| rule.name());
            format!("{} ('{name}')", places.get(other).map_or("", String::as_str))
        };
        if let Err(earlier) = self.routes.insert(matched, self.rules.len()) {
            let message = format!("'{}' is for the same host, method and path as {}", rule.name(), named(earlier));
            faults.add(place, message);
        } else if let Some(earlier) = self.rules.iter().position(|earlier| earlier.name() == rule.name()) {
            faults.add(place, format!("has the same name as {}; names are unique", named(earlier)));
        }
        let longest = rule.keys.iter().map(|key| self.fixed_len(&key.template)).max().unwrap_or_default();
        if longest > KEY_MAX_BYTES {
            let message = format!("its keys have {longest} bytes before any value; at most {KEY_MAX_BYTES}");
            faults.add(place, message);
        }
        self.rules.push(Arc::new(rule));
    }
}
