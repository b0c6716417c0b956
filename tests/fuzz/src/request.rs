//! A request out of a fuzzer's bytes.
//!
//! Rules, a line `---`, `METHOD AUTHORITY TARGET`, then headers as `name: value`, a line each.

use std::borrow::Cow;

use turnstile_rules::{HeaderValues, RequestView};

/// A request in plain parts.
#[derive(Debug)]
pub struct Request<'b> {
    line: Vec<&'b [u8]>,
    headers: Vec<(&'b [u8], &'b [u8])>,
}

/// The rules, and the request.
pub fn split(bytes: &[u8]) -> (&[u8], Request<'_>) {
    let (rules, request) = cut(bytes, b"\n---\n").unwrap_or((bytes, b""));
    let (line, headers) = cut(request, b"\n").unwrap_or((request, b""));
    let headers = headers.split(|byte| *byte == b'\n').filter_map(|line| cut(line, b": ")).collect();
    (rules, Request { line: line.splitn(3, |byte| *byte == b' ').collect(), headers })
}

fn cut<'b>(bytes: &'b [u8], at: &[u8]) -> Option<(&'b [u8], &'b [u8])> {
    let place = bytes.windows(at.len()).position(|window| window == at)?;
    Some((bytes.get(..place)?, bytes.get(place + at.len()..)?))
}

impl Request<'_> {
    fn part(&self, number: usize) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.line.get(number).copied().unwrap_or_default())
    }
}

impl RequestView for Request<'_> {
    fn method(&self) -> Cow<'_, [u8]> {
        self.part(0)
    }

    fn authority(&self) -> Cow<'_, [u8]> {
        self.part(1)
    }

    fn path(&self) -> Cow<'_, [u8]> {
        self.part(2)
    }

    fn header(&self, name: &str) -> HeaderValues<'_> {
        let mut values = self.headers.iter().filter(|(header, _)| *header == name.as_bytes());
        match (values.next(), values.next()) {
            (None, _) => HeaderValues::Absent,
            (Some((_, value)), None) => HeaderValues::One(Cow::Borrowed(value)),
            (Some(_), Some(_)) => HeaderValues::Several,
        }
    }
}
