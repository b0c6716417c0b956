//! From host, method and path to the rule: a tree of path segments for each host pattern.
//!
//! Matched by hand and not by a router crate, since all of them refuse `/a/{id}` beside `/a/{*rest}` or forget the
//! second when the first has no such method; a lock must find every rule that fits.

use std::collections::BTreeMap;

use crate::host::HostPattern;
use crate::rule::{Match, Methods};
use crate::template::Segment;

/// All rules, by what they match.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    exact: BTreeMap<Box<str>, Node>,
    /// By suffix, without the `*.`.
    under: BTreeMap<Box<str>, Node>,
    any: Node,
}

/// The index of a rule in its set.
pub(crate) type RuleIndex = usize;

/// The paths that begin alike.
#[derive(Debug, Default)]
struct Node {
    /// Sorted by segment.
    statics: Vec<(Box<str>, Node)>,
    one: Option<Box<Node>>,
    /// Rules of which a tail parameter begins here.
    tail: Endpoint,
    /// Rules of which the path ends here.
    end: Endpoint,
}

/// The rules for one path template.
#[derive(Debug, Default)]
struct Endpoint {
    named: Vec<(Box<str>, RuleIndex)>,
    any: Option<RuleIndex>,
}

/// The rule that matches, and the values of its path parameters, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found<'p> {
    pub(crate) rule: RuleIndex,
    pub(crate) captures: Vec<&'p str>,
}

impl Routes {
    /// Adds a rule, or returns an earlier one that matches the same host, method and path.
    pub(crate) fn insert(&mut self, matched: &Match, rule: RuleIndex) -> Result<(), RuleIndex> {
        let root = match &matched.host {
            HostPattern::Any => &mut self.any,
            HostPattern::Exact(host) => self.exact.entry(host.clone()).or_default(),
            HostPattern::Under(suffix) => self.under.entry(suffix.clone()).or_default(),
        };
        root.endpoint(&matched.path.segments).insert(&matched.methods, rule)
    }

    /// Whether some rule asks for the host.
    pub(crate) fn need_host(&self) -> bool {
        !(self.exact.is_empty() && self.under.is_empty())
    }

    /// The rule for a request: the most specific host pattern first, then the most specific path, then the method. What
    /// fits better in one of them but not in all does not hide what fits in all.
    pub(crate) fn find<'p>(&self, host: &str, path: &'p str, method: &[u8]) -> Option<Found<'p>> {
        let path = path.strip_prefix('/').filter(|path| !path.is_empty());
        self.levels(host).find_map(|level| {
            let mut captures = Vec::new();
            let rule = level.find(path, method, &mut captures)?;
            captures.reverse();
            Some(Found { rule, captures })
        })
    }

    /// Any rule for this host and method, whatever the path.
    pub(crate) fn find_any(&self, host: &str, method: &[u8]) -> Option<RuleIndex> {
        self.levels(host).find_map(|level| level.find_any(method))
    }

    fn levels(&self, host: &str) -> impl Iterator<Item = &Node> {
        let suffixes = host.match_indices('.').filter_map(move |(dot, _)| host.get(dot + 1..));
        // Longer suffixes come first by themselves.
        let under = suffixes.filter_map(|suffix| self.under.get(suffix)).collect::<Vec<_>>();
        self.exact.get(host).into_iter().chain(under).chain([&self.any])
    }
}

impl Node {
    fn endpoint(&mut self, segments: &[Segment]) -> &mut Endpoint {
        match segments {
            [] => &mut self.end,
            [Segment::Tail(_), ..] => &mut self.tail,
            [Segment::One(_), rest @ ..] => self.one.get_or_insert_default().endpoint(rest),
            [Segment::Static(text), rest @ ..] => self.static_child(text).endpoint(rest),
        }
    }

    fn static_child(&mut self, text: &str) -> &mut Node {
        let at = match self.statics.binary_search_by(|(segment, _)| (**segment).cmp(text)) {
            Ok(at) => at,
            Err(at) => {
                self.statics.insert(at, (text.into(), Node::default()));
                at
            }
        };
        #[allow(clippy::indexing_slicing, reason = "found or inserted just now")]
        &mut self.statics[at].1
    }

    /// Each node is visited at most once, so a path costs no more than the tree has nodes. Captures are pushed on the
    /// way back, last one first: a path that matches nothing allocates nothing.
    fn find<'p>(&self, path: Option<&'p str>, method: &[u8], captures: &mut Vec<&'p str>) -> Option<RuleIndex> {
        let Some(path) = path else {
            return self.end.find(method);
        };
        let (segment, rest) = match path.split_once('/') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (path, None),
        };
        if let Ok(at) = self.statics.binary_search_by(|(text, _)| (**text).cmp(segment))
            && let Some((_, child)) = self.statics.get(at)
            && let Some(rule) = child.find(rest, method, captures)
        {
            return Some(rule);
        }
        if let Some(child) = &self.one
            && let Some(rule) = child.find(rest, method, captures)
        {
            captures.push(segment);
            return Some(rule);
        }
        let rule = self.tail.find(method)?;
        captures.push(path);
        Some(rule)
    }

    fn find_any(&self, method: &[u8]) -> Option<RuleIndex> {
        let here = self.end.find(method).or_else(|| self.tail.find(method));
        let mut children = self.statics.iter().map(|(_, child)| child).chain(self.one.as_deref());
        here.or_else(|| children.find_map(|child| child.find_any(method)))
    }
}

impl Endpoint {
    fn insert(&mut self, methods: &Methods, rule: RuleIndex) -> Result<(), RuleIndex> {
        match methods {
            Methods::Any => match self.any {
                Some(earlier) => Err(earlier),
                None => {
                    self.any = Some(rule);
                    Ok(())
                }
            },
            Methods::Named(methods) => {
                for method in methods {
                    match self.named.iter().find(|(earlier, _)| earlier.eq_ignore_ascii_case(method)) {
                        Some((_, earlier)) => return Err(*earlier),
                        None => self.named.push((method.clone(), rule)),
                    }
                }
                Ok(())
            }
        }
    }

    /// In any letter case: an upstream that takes `post` for `POST` must not be a way around the lock.
    fn find(&self, method: &[u8]) -> Option<RuleIndex> {
        let is_it = |name: &str| name.as_bytes().eq_ignore_ascii_case(method);
        let named = self.named.iter().find(|(name, _)| is_it(name)).map(|(_, rule)| *rule);
        named.or(self.any)
    }
}
