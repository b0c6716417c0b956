//! Values of keys that do not come from the path: query parameters and headers.

use std::borrow::Cow;

use crate::encoding;
use crate::request::{HeaderValues, KeyPart, RequestFault};

/// Appends the value of the query parameter `name` in canonical form.
pub(crate) fn push_parameter(query: &[u8], name: &str, key: &mut String) -> Result<(), RequestFault> {
    let part = || KeyPart::Query(name.into());
    let mut found: Option<Cow<'_, [u8]>> = None;
    let mut is_exact = true;
    for pair in query.split(|&byte| byte == b'&') {
        for (index, piece) in pair.split(|&byte| byte == b';').enumerate() {
            let (piece_name, value) = split_pair(piece);
            let piece_name = encoding::decode_form(piece_name);
            if !is_alike(&piece_name, name) {
                continue;
            }
            if index > 0 || pair.contains(&b';') {
                return Err(RequestFault::AmbiguousPart(part(), "a semicolon"));
            }
            if found.is_some() {
                return Err(RequestFault::Doubled(part()));
            }
            if encoding::has_invalid_escape(value) {
                return Err(RequestFault::AmbiguousPart(part(), "an invalid percent escape"));
            }
            is_exact = *piece_name == *name.as_bytes();
            found = Some(encoding::decode_form(value));
        }
    }
    match found {
        Some(value) if is_exact => push_value(&value, part, key),
        _ => Err(RequestFault::Missing(part())),
    }
}

/// Appends the value of the header `name` in canonical form.
pub(crate) fn push_header(values: HeaderValues<'_>, name: &str, key: &mut String) -> Result<(), RequestFault> {
    let part = || KeyPart::Header(name.into());
    match values {
        HeaderValues::Absent => Err(RequestFault::Missing(part())),
        HeaderValues::Several => Err(RequestFault::Doubled(part())),
        HeaderValues::One(value) if value.contains(&b',') => Err(RequestFault::Doubled(part())),
        HeaderValues::One(value) => push_value(trim_blanks(&value), part, key),
    }
}

fn push_value(value: &[u8], part: impl Fn() -> KeyPart, key: &mut String) -> Result<(), RequestFault> {
    if value.is_empty() {
        Err(RequestFault::Missing(part()))
    } else if value.iter().any(u8::is_ascii_control) {
        Err(RequestFault::AmbiguousPart(part(), "a control character"))
    } else if value.first() == Some(&b' ') || value.last() == Some(&b' ') {
        Err(RequestFault::AmbiguousPart(part(), "a space at its start or end"))
    } else {
        encoding::encode(value, key);
        Ok(())
    }
}

/// Whether some upstream takes one name for the other: many ignore case, some drop what surrounds a name.
fn is_alike(found: &[u8], name: &str) -> bool {
    let is_dropped = |byte: &u8| byte.is_ascii_control() || *byte == b' ';
    let start = found.iter().position(|byte| !is_dropped(byte)).unwrap_or(found.len());
    let end = found.iter().rposition(|byte| !is_dropped(byte)).map_or(start, |last| last + 1);
    found.get(start..end).is_some_and(|found| found.eq_ignore_ascii_case(name.as_bytes()))
}

fn split_pair(piece: &[u8]) -> (&[u8], &[u8]) {
    match piece.iter().position(|&byte| byte == b'=') {
        Some(at) => (piece.get(..at).unwrap_or_default(), piece.get(at + 1..).unwrap_or_default()),
        None => (piece, b""),
    }
}

fn trim_blanks(value: &[u8]) -> &[u8] {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !is_blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1);
    value.get(start..end).unwrap_or_default()
}
