//! What the rules see of a request, and what they decide about it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::{LockKeys, Rule};

/// A request, seen through the proxy. Every part is asked for only if a rule needs it, and once per decision (a header
/// once for each place that it has in the keys), so that an implementation may fetch it from the proxy when asked. All
/// are bytes: clients may send any.
pub trait RequestView {
    /// The method (`:method`).
    fn method(&self) -> Cow<'_, [u8]>;
    /// The host and port (`:authority`, or `host`); empty if there is none. Asked only if some rule names a host.
    fn authority(&self) -> Cow<'_, [u8]>;
    /// The request target with its query (`:path`); empty if there is none.
    fn path(&self) -> Cow<'_, [u8]>;
    /// The values of a header; `name` is lower-case. Asked only for the headers in the matching rule's key.
    fn header(&self, name: &str) -> HeaderValues<'_>;
}

/// How often a header occurs, and its value.
///
/// Envoy hands several headers of one name over as one value, joined by commas: a view may pass that on as `One`, since
/// a comma in a value counts as several values anyway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderValues<'v> {
    /// There is no such header.
    Absent,
    /// There is one, with this value.
    One(Cow<'v, [u8]>),
    /// There are several.
    Several,
}

/// What is to be done with a request.
#[derive(Clone, Debug)]
pub enum Decision<'r> {
    /// No rule matches: let it pass.
    Unguarded,
    /// A rule matches: the request needs these locks, all of them at once.
    Guarded {
        /// The rule.
        rule: &'r Arc<Rule>,
        /// The keys as they go over the wire.
        keys: LockKeys,
    },
    /// A rule matches, or would match in some upstream's reading of the path, but a key is not beyond doubt: answer
    /// with status 400 (`application/problem+json`).
    Refused {
        /// The rule.
        rule: &'r Arc<Rule>,
        /// What is wrong with the request. Its `Display` text may be shown to the client.
        fault: RequestFault,
    },
}

/// Why a guarded request is refused. The texts are meant for the client; they repeat nothing that the client sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestFault {
    /// The path can be read in more than one way.
    #[error("the path of this request can be read in more than one way: it contains {0}")]
    AmbiguousPath(&'static str),
    /// A part of the key is missing or empty.
    #[error("this request needs {0}, which is missing or empty")]
    Missing(KeyPart),
    /// A part of the key occurs several times.
    #[error("this request has {0} more than once, but it must occur exactly once")]
    Doubled(KeyPart),
    /// A part of the key can be read in more than one way.
    #[error("{0} of this request can be read in more than one way: it contains {1}")]
    AmbiguousPart(KeyPart, &'static str),
    /// The lock key would be too long.
    #[error("the values in this request that name its lock are too long")]
    KeyTooLong,
}

/// Where a part of a key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPart {
    /// A query parameter.
    Query(Box<str>),
    /// A header, lower-case.
    Header(Box<str>),
}

impl fmt::Display for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query(name) => write!(f, "the query parameter '{name}'"),
            Self::Header(name) => write!(f, "the header '{name}'"),
        }
    }
}
