//! Percent encoding: the one spelling that every value has inside a key, and the decoders that lead to it.

use std::borrow::Cow;

/// Whether a byte stands for itself in a canonical value.
pub(crate) const fn is_canonical(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'@')
}

/// Appends `value` with every byte outside `[A-Za-z0-9-._~@]` as `%XX`, in upper case.
pub(crate) fn encode(value: &[u8], out: &mut String) {
    const HEX: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().unwrap_or('0');
    for &byte in value {
        if is_canonical(byte) {
            out.push(char::from(byte));
        } else {
            out.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
}

/// The byte that an escape at the start of `text` stands for.
pub(crate) fn escape(text: &[u8]) -> Option<u8> {
    match text {
        [b'%', high, low, ..] => hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low),
        _ => None,
    }
}

/// The byte that an escape of the old form `%u00XX` at the start of `text` stands for.
pub(crate) fn unicode_escape(text: &[u8]) -> Option<u8> {
    match text {
        [b'%', b'u' | b'U', b'0', b'0', high, low, ..] => escape(&[b'%', *high, *low]),
        _ => None,
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Decodes escapes once; what looks like an escape but is none stays as it is.
pub(crate) fn decode(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        match escape(rest) {
            Some(decoded) => {
                out.push(decoded);
                rest = rest.get(3..).unwrap_or_default();
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

/// Decodes a name or value of a query string, where `+` is a space.
pub(crate) fn decode_form(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.iter().any(|byte| matches!(byte, b'+' | b'%')) {
        return Cow::Borrowed(text);
    }
    let spaced: Vec<u8> = text.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect();
    Cow::Owned(decode(&spaced))
}

/// Whether there is a `%` that begins no escape.
pub(crate) fn has_invalid_escape(text: &[u8]) -> bool {
    tails(text).any(|tail| tail.first() == Some(&b'%') && escape(tail).is_none())
}

/// Whether there is something that decoding (again) would change.
pub(crate) fn has_escape(text: &[u8]) -> bool {
    tails(text).any(|tail| escape(tail).is_some() || unicode_escape(tail).is_some())
}

fn tails(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    (0..text.len()).filter_map(|start| text.get(start..))
}
