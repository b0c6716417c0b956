//! One request on its way through the filter: what Envoy's filter manager knows of it.

use std::collections::HashMap;

use super::abi::Headers;

/// What a client sends.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Pseudo headers included.
    pub headers: Headers,
    /// Absent means that the headers end the stream.
    pub body: Option<Vec<u8>>,
    /// What Envoy would answer to `get_property`, path joined by dots. `None` stands for a value that cannot be
    /// serialised (a `null` in route metadata).
    pub properties: HashMap<String, Option<Vec<u8>>>,
    /// How the request ends as soon as it is let through, within the same callback (a direct response, say).
    pub at_once: Option<Ending>,
}

impl Request {
    /// A request without a body.
    pub fn new(method: &str, path: &str) -> Self {
        Self::default()
            .header(":method", method)
            .header(":path", path)
            .header(":authority", "shop.example.com")
            .header(":scheme", "http")
            .header("x-request-id", "11111111-2222-4333-8444-555555555555")
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.add(name, value);
        self
    }

    /// Puts one value in place of those that a header has.
    pub fn with(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.set(name, value);
        self
    }

    /// Takes a header away.
    pub fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Sets a property.
    pub fn property(mut self, path: &str, value: impl Into<Vec<u8>>) -> Self {
        self.properties.insert(path.to_owned(), Some(value.into()));
        self
    }

    /// Makes a property one that cannot be serialised.
    pub fn broken_property(mut self, path: &str) -> Self {
        self.properties.insert(path.to_owned(), None);
        self
    }

    /// Ends the request in this way as soon as it is let through.
    pub fn ends_at_once(mut self, ending: Ending) -> Self {
        self.at_once = Some(ending);
        self
    }
}

pub(super) fn is_grpc(headers: &Headers) -> bool {
    headers.get("content-type").is_some_and(|value| {
        value.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
    })
}

/// A response as it goes through the filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// `:status` included.
    pub headers: Headers,
    /// The pieces in which the body comes. An empty list with `end: End::Headers` is a response without a body.
    pub body: Vec<Vec<u8>>,
    /// Where the stream ends.
    pub end: End,
}

/// Which part of a response carries the end of the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// 204, 304, HEAD.
    Headers,
    /// The last piece of the body, which may be empty.
    #[default]
    Body,
    /// Trailers.
    Trailers(Headers),
    /// It does not end: the exchange is cut, or goes on.
    Never,
}

impl Response {
    /// A response with one piece of body.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let headers = [(":status", status.to_string()), ("content-type", "text/plain".to_owned())];
        Self { headers: headers.into_iter().collect(), body: vec![body.into()], end: End::Body }
    }

    /// A response that its headers end.
    pub fn headers_only(status: u16) -> Self {
        let headers = [(":status", status.to_string())].into_iter().collect();
        Self { headers, body: Vec::new(), end: End::Headers }
    }

    /// Ends the response there instead.
    pub fn end(mut self, end: End) -> Self {
        self.end = end;
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.add(name, value);
        self
    }
}

/// How an exchange goes on or ends once the request was let through, as Envoy tells it to a filter.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// What reaches the filter, if anything does.
    pub response: Option<Response>,
    /// Who made the response.
    pub made_by: Maker,
    /// `response.code_details`.
    pub details: &'static str,
    /// `response.flags`: bits as in Envoy's `StreamInfo::ResponseFlag`.
    pub flags: u64,
    /// `upstream.request_attempt_count`; `None` if no attempt was made.
    pub attempts: Option<u64>,
    /// Whether the exchange is over after the response.
    pub over: bool,
}

/// Who made a response.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Maker {
    #[default]
    Upstream,
    Envoy,
    Filter,
}

/// Where a request stands, as its client and its upstream see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The filter holds it back.
    Paused,
    /// The upstream has it, with these headers, and no complete answer was given yet.
    Upstream {
        /// As the filter let them through.
        headers: Headers,
    },
    /// The filter answered in place of the upstream.
    LocalReply(Reply),
    /// Envoy answered in place of the upstream.
    EnvoyReply(Reply),
    /// The upstream answered.
    Answered(Reply),
    /// It ended without a complete answer.
    Cut,
}

/// What the client gets, after the filter's response callbacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// `:status` included.
    pub headers: Headers,
    /// All of it.
    pub body: Vec<u8>,
}

impl Reply {
    /// The status code; 0 if it is none.
    pub fn status(&self) -> u16 {
        self.headers.text(":status").and_then(|status| status.parse().ok()).unwrap_or(0)
    }
}

/// How far an exchange has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its request headers callback runs.
    Deciding,
    Paused,
    Forwarded,
    /// Response headers have passed.
    Responding,
    /// `on_log` or later runs.
    Ending,
    Over,
}

pub(super) struct Exchange {
    pub(super) root: u32,
    pub(super) phase: Phase,
    pub(super) request: Request,
    pub(super) response: Response,
    /// Whether hostcalls reach the request headers: until the request goes on.
    pub(super) request_open: bool,
    pub(super) response_open: bool,
    /// Whether hostcalls may read everything, and write nothing.
    pub(super) logging: bool,
    pub(super) forwarded: Option<Headers>,
    pub(super) made_by: Maker,
    pub(super) complete: bool,
    /// Nobody holds a handle any more: it goes when it is over.
    pub(super) abandoned: bool,
    pub(super) ended_at: Option<std::time::Duration>,
}

impl Exchange {
    pub(super) fn new(root: u32, request: Request) -> Self {
        Self {
            root,
            phase: Phase::Deciding,
            request,
            response: Response::default(),
            request_open: false,
            response_open: false,
            logging: false,
            forwarded: None,
            made_by: Maker::Upstream,
            complete: false,
            abandoned: false,
            ended_at: None,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.phase != Phase::Over
    }

    pub(super) fn outcome(&self) -> Outcome {
        if self.complete {
            let reply = Reply { headers: self.response.headers.clone(), body: self.response.body.concat() };
            return match self.made_by {
                Maker::Upstream => Outcome::Answered(reply),
                Maker::Envoy => Outcome::EnvoyReply(reply),
                Maker::Filter => Outcome::LocalReply(reply),
            };
        }
        match (self.phase, &self.forwarded) {
            (Phase::Deciding | Phase::Paused, _) => Outcome::Paused,
            (Phase::Forwarded | Phase::Responding, Some(headers)) => Outcome::Upstream { headers: headers.clone() },
            _ => Outcome::Cut,
        }
    }
}
