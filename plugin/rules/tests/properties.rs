//! What holds for every request and every rule set. A failure prints the smallest case found, to become a line of the
//! table in `spellings.rs` or `matching.rs`; PROPTEST_CASES and PROPTEST_RNG_SEED vary and replay a run.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Request, outcome, rules};
use proptest::prelude::*;
use turnstile_rules::{Decision, RuleSet};

/// The rules that the requests below go against: every kind of precedence, two kinds of tail.
fn some_rules() -> RuleSet {
    rules(&[
        "POST /a/{x}/b key=a:{x}",
        "* /a/{x}/{y} key=two:{x}:{y}",
        "POST /t/{*rest} key=tail:{rest}",
        "* h.example.com/a/{*rest} key=host:{rest}",
        "GET /q/{x} key=q:{x}:{query.id}:{header.x-h}",
        "POST /q/{x} key=q:{x},q:{query.id},t:{header.x-h} mode=shared",
    ])
}

fn key_of(rules: &RuleSet, request: &Request) -> Option<Result<String, String>> {
    match rules.decide(request) {
        Decision::Unguarded => None,
        Decision::Guarded { keys, .. } => Some(Ok(keys.into_text())),
        Decision::Refused { fault, .. } => Some(Err(fault.to_string())),
    }
}

/// Bytes that mean something somewhere, and any others.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![
        8 => proptest::sample::select(b"/%.;\\?#&=+ abtq25fFecC30u:,\0".to_vec()),
        1 => any::<u8>(),
    ]
}

fn any_request() -> impl Strategy<Value = Request> {
    let method =
        prop_oneof![Just(b"POST".to_vec()), Just(b"GET".to_vec()), proptest::collection::vec(any::<u8>(), 0..5)];
    let host = prop_oneof![Just(b"h.example.com".to_vec()), proptest::collection::vec(any::<u8>(), 0..20)];
    let start = proptest::sample::select(vec!["", "/", "/a/", "/t/", "/q/", "/q/1?id="]);
    let rest = proptest::collection::vec(byte(), 0..40);
    let header = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..8));
    (method, host, start, rest, header).prop_map(|(method, host, start, rest, header)| {
        let request = Request::raw(method, host, [start.as_bytes(), &rest].concat());
        header.into_iter().fold(request, |request, value| request.header("x-h", value))
    })
}

/// The bytes of a value that is not ambiguous in a path: those have tests of their own.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let few = proptest::sample::select(b":+x-@=a".to_vec());
    let bytes = prop_oneof![
        proptest::collection::vec(prop_oneof![3 => 32..127u8, 1 => any::<u8>()], 1..8),
        proptest::collection::vec(few, 1..4),
    ];
    bytes.prop_map(|mut value| {
        for byte in &mut value {
            if byte.is_ascii_control() || b"/\\;?#%".contains(byte) {
                *byte = b'x';
            }
        }
        if value.starts_with(b" ") || value.ends_with(b" ") || value == b"." || value == b".." {
            value = [b"x", value.as_slice(), b"x"].concat();
        }
        value
    })
}

/// Values for two segments, for a tail and a query parameter, and for a header, in which a comma would part two values.
fn values() -> impl Strategy<Value = [Vec<u8>; 4]> {
    let value = || value().prop_map(|value| value.iter().map(|&byte| if byte == b',' { b':' } else { byte }).collect());
    [value(), value(), value(), value()]
}

/// Ways to write a path that mean the same to every reader, or at least to some.
#[derive(Clone, Debug)]
enum Respelling {
    Escape(bool),
    EscapeTwice,
    OldEscape,
}

#[derive(Clone, Copy, Debug)]
enum Joint {
    Slash,
    Slashes,
    Dot,
    EscapedDot,
    Parent,
    EscapedParent,
    Parameter,
    ParameterParent,
    Backslash,
    EscapedSlash,
    EscapedBackslash,
    DoublyEscapedSlash,
    Space,
    Nul,
}

impl Joint {
    const ALL: [Self; 14] = [
        Self::Slash,
        Self::Slashes,
        Self::Dot,
        Self::EscapedDot,
        Self::Parent,
        Self::EscapedParent,
        Self::Parameter,
        Self::ParameterParent,
        Self::Backslash,
        Self::EscapedSlash,
        Self::EscapedBackslash,
        Self::DoublyEscapedSlash,
        Self::Space,
        Self::Nul,
    ];

    fn text(self) -> &'static str {
        match self {
            Self::Slash => "/",
            Self::Slashes => "//",
            Self::Dot => "/./",
            Self::EscapedDot => "/%2e/",
            Self::Parent => "/x/../",
            Self::EscapedParent => "/x/.%2E/",
            Self::Parameter => ";p=1/",
            Self::ParameterParent => "/x/..;/",
            Self::Backslash => "\\",
            Self::EscapedSlash => "%2f",
            Self::EscapedBackslash => "%5C",
            Self::DoublyEscapedSlash => "%252F",
            Self::Space => "%20/",
            Self::Nul => "\0/",
        }
    }
}

fn spell(segment: &[u8], how: &[Option<Respelling>]) -> Vec<u8> {
    let must_escape = |byte: u8| !byte.is_ascii_graphic() || b"/\\;?#%".contains(&byte);
    let spellings = segment.iter().enumerate().map(|(index, &byte)| {
        let text = match how.get(index % how.len().max(1)).cloned().flatten() {
            Some(Respelling::Escape(true)) => format!("%{byte:02X}"),
            Some(Respelling::Escape(false)) => format!("%{byte:02x}"),
            Some(Respelling::EscapeTwice) => format!("%25{byte:02x}"),
            Some(Respelling::OldEscape) => format!("%u00{byte:02x}"),
            None if must_escape(byte) => format!("%{byte:02X}"),
            None => return vec![byte],
        };
        text.into_bytes()
    });
    spellings.flatten().collect()
}

fn respellings() -> impl Strategy<Value = Vec<Option<Respelling>>> {
    let one = prop_oneof![
        6 => Just(None),
        3 => any::<bool>().prop_map(|upper| Some(Respelling::Escape(upper))),
        1 => Just(Some(Respelling::EscapeTwice)),
        1 => Just(Some(Respelling::OldEscape)),
    ];
    proptest::collection::vec(one, 1..6)
}

/// Each joint stands for the slash before a segment. One spelled as a slash only if decoded cannot begin a path.
fn joints(count: usize) -> impl Strategy<Value = Vec<Joint>> {
    let usual = prop_oneof![Just(Joint::Slash), Just(Joint::Slashes), Just(Joint::Dot), Just(Joint::EscapedDot)];
    let any = prop_oneof![2 => usual, 1 => proptest::sample::select(Joint::ALL.to_vec())];
    proptest::collection::vec(any, count)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_request_makes_it_panic_and_every_key_is_one(request in any_request()) {
        let rules = some_rules();
        if let Decision::Guarded { keys, .. } = rules.decide(&request) {
            let all: BTreeSet<&str> = keys.iter().map(|(key, _)| key).collect();
            prop_assert_eq!(all.len(), keys.iter().count(), "{:?}", keys);
            for key in all {
                prop_assert!(turnstile_core::LockKey::parse(key).is_ok(), "{key}");
            }
        }
    }

    /// However a transfer is spelled, it needs the keys of both accounts, or of the one that is both; or it is refused.
    #[test]
    fn several_keys_are_the_same_in_every_spelling(
        from in value(),
        to in value(),
        to_itself in any::<bool>(),
        how in respellings(),
        upper in proptest::collection::vec(any::<bool>(), 1..6),
    ) {
        let line = "POST /accounts/{from}/transfer key=account:{from},account:{query.to} mode=shared,limit:4";
        let rules = rules(&[line]);
        let to = if to_itself { from.clone() } else { to };
        let request = |path: &[Option<Respelling>], query: &[bool]| {
            let escapes: Vec<_> = query.iter().map(|&upper| Some(Respelling::Escape(upper))).collect();
            let mut target = b"/accounts/".to_vec();
            target.extend(spell(&from, path));
            target.extend(b"/transfer?to=");
            target.extend(spell(&to, &escapes));
            Request::raw("POST", "", target)
        };
        let expected = outcome(&rules, &request(&[], &[true]));
        let mode = |key: &'_ str| key.split_once(' ').map_or("", |(_, mode)| mode).to_owned();
        let modes: Vec<String> = expected.split(',').map(mode).collect();
        prop_assert_eq!(modes, if from == to { vec![""] } else { vec!["shared", "limit:4"] }, "{}", &expected);
        let found = outcome(&rules, &request(&how, &upper));
        prop_assert!(found == expected || found.starts_with("! "), "{found} instead of {expected}");
    }

    /// A respelled request has the same key or is refused. Never unguarded, never another key.
    #[test]
    fn a_respelling_never_slips_past(
        value in value(),
        joints in joints(4),
        how in (respellings(), respellings(), respellings()),
        end in proptest::sample::select(vec!["", "/", "//", "/.", "?x=1", "/?", ";v", "%00", "%20", "#f", "/x/..", "%3f"]),
    ) {
        let rules = rules(&["POST /accounts/{id}/transfer key=account:{id}"]);
        let mut plain = b"/accounts/".to_vec();
        plain.extend(spell(&value, &[]));
        plain.extend(b"/transfer");
        let Some(Ok(expected)) = key_of(&rules, &Request::raw("POST", "", plain)) else {
            return Err(TestCaseError::fail("the plain spelling is not guarded"));
        };
        let mut target = Vec::new();
        for (joint, segment) in joints.iter().zip([
            spell(b"accounts", &how.0),
            spell(&value, &how.1),
            spell(b"transfer", &how.2),
        ]) {
            target.extend(joint.text().bytes());
            target.extend(segment);
        }
        target.extend(end.bytes());
        let shown = String::from_utf8_lossy(&target).into_owned();
        match key_of(&rules, &Request::raw("POST", "", target)) {
            Some(Ok(key)) => prop_assert_eq!(key, expected, "{}", shown),
            Some(Err(_)) => {}
            None => prop_assert!(false, "slipped past: {shown}"),
        }
    }

    /// Two requests have the same key only if all the values in it are the same.
    #[test]
    fn different_values_have_different_keys(
        one in values(),
        other in values(),
        swap in any::<bool>(),
    ) {
        let rules = rules(&["POST /x/{a}/{b}/{*rest} key={a}:{b}/{rest}/{query.c}+x{header.d}"]);
        // Near misses: the same bytes, cut elsewhere.
        let other = if swap { [one[1].clone(), one[0].clone(), one[3].clone(), one[2].clone()] } else { other };
        let request = |[a, b, c, d]: &[Vec<u8>; 4]| {
            let path = ["/x", "/", "/", "/"].map(str::as_bytes);
            let values = [spell(a, &[]), spell(b, &[]), spell(c, &[])];
            let mut target = b"/x".to_vec();
            for (slash, value) in path.iter().skip(1).zip(&values) {
                target.extend(*slash);
                target.extend(value);
            }
            target.extend(b"/more?c=");
            target.extend(spell(c, &[Some(Respelling::Escape(true))]));
            Request::raw("POST", "", target).header("d", d)
        };
        let keys = [key_of(&rules, &request(&one)), key_of(&rules, &request(&other))];
        prop_assert!(keys.iter().all(|key| matches!(key, Some(Ok(_)))), "{keys:?}");
        prop_assert_eq!(keys[0] == keys[1], one == other);
    }

    /// The tree of segments finds what a plain search through all templates finds.
    #[test]
    fn the_tree_agrees_with_a_plain_search(
        templates in proptest::collection::btree_set(template(), 1..8),
        path in proptest::collection::vec(proptest::sample::select(vec!["a", "b", "c"]), 0..5),
        is_post in any::<bool>(),
    ) {
        let lines: Vec<String> = templates.iter().map(|(is_post, segments)| {
            let text = line_path(segments);
            let method = if *is_post { "POST" } else { "*" };
            format!("{method} {text} key={method}:{}", text.replace('{', "<").replace('}', ">"))
        }).collect();
        let rules = rules(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        let method = if is_post { "POST" } else { "GET" };
        let found = match rules.decide(&Request::raw(method, "", format!("/{}", path.join("/")))) {
            Decision::Guarded { rule, .. } => Some(rule.name().to_owned()),
            Decision::Unguarded => None,
            Decision::Refused { fault, .. } => return Err(TestCaseError::fail(fault.to_string())),
        };
        // Most specific first: by the rank of each segment, then named method before any.
        let mut fitting = BTreeMap::new();
        for (needs_post, segments) in &templates {
            if (is_post || !needs_post) && fits(segments, &path) {
                let ranks: Vec<u8> = segments.iter().map(|segment| rank(segment)).collect();
                let method = if *needs_post { "POST" } else { "*" };
                fitting.insert((ranks, !needs_post), format!("{method} {}", line_path(segments)));
            }
        }
        prop_assert_eq!(found, fitting.into_values().next());
    }
}

/// Whether it needs POST, and its segments: `a`, `b`, `1` for a parameter, `*` for a tail.
fn template() -> impl Strategy<Value = (bool, Vec<&'static str>)> {
    let segments = proptest::collection::vec(proptest::sample::select(vec!["a", "b", "1"]), 0..4);
    (any::<bool>(), segments, any::<bool>()).prop_map(|(is_post, mut segments, has_tail)| {
        segments.extend(has_tail.then_some("*"));
        (is_post, segments)
    })
}

fn line_path(segments: &[&str]) -> String {
    let texts = segments.iter().enumerate().map(|(index, segment)| match *segment {
        "1" => format!("{{p{index}}}"),
        "*" => "{*rest}".to_owned(),
        text => text.to_owned(),
    });
    format!("/{}", texts.collect::<Vec<_>>().join("/"))
}

fn rank(segment: &str) -> u8 {
    match segment {
        "1" => 1,
        "*" => 2,
        _ => 0,
    }
}

fn fits(segments: &[&str], path: &[&str]) -> bool {
    match (segments, path) {
        ([], []) => true,
        (["*"], [_, ..]) => true,
        ([segment, segments @ ..], [name, path @ ..]) => (*segment == "1" || segment == name) && fits(segments, path),
        _ => false,
    }
}
