//! The part of a URL behind the question mark.

use axum::http::Uri;
use serde_json::{Map, Value};

use super::problem::Problem;
use crate::fields::{Fault, Section};

/// Reads the query of a URL as named texts, each at most once; every fault in it is told.
pub(super) fn read<T>(uri: &Uri, read: impl FnOnce(&mut Section<'_>) -> T) -> Result<T, Problem> {
    let mut fields = Map::new();
    let mut faults = Vec::new();
    for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let fault = |problem: &str| Fault { place: "query".into(), problem: format!("{pair:?} {problem}") };
        match (decoded(name), decoded(value)) {
            (Some(name), Some(value)) => {
                if fields.insert(name, Value::String(value)).is_some() {
                    faults.push(fault("names something a second time"));
                }
            }
            _ => faults.push(fault("is no percent-encoded text")),
        }
    }
    let mut section = Section::root(fields, &mut faults);
    let result = read(&mut section);
    section.finish();
    if faults.is_empty() { Ok(result) } else { Err(Problem::malformed(&faults)) }
}

/// Undoes percent-encoding. A plus stands for itself: no name here has a space.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                digit()? << 4 | digit()?
            }
            _ => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding_is_undone_once() {
        for (text, plain) in [
            ("default/a+b", Some("default/a+b")),
            ("%64efault%2Fa%25", Some("default/a%")),
            ("%2525", Some("%25")),
            ("%C3%a9", Some("é")),
            ("%", None),
            ("%4", None),
            ("%zz", None),
            ("%ff", None),
        ] {
            assert_eq!(decoded(text).as_deref(), plain, "{text}");
        }
    }

    #[test]
    fn a_query_is_read_like_a_body() {
        let read = |query: &str| {
            let uri: Uri = format!("/?{query}").parse().unwrap();
            read(&uri, |section| section.text("prefix", "none"))
        };
        assert_eq!(read("").unwrap(), "none");
        assert_eq!(read("&prefix=a%2Fb&").unwrap(), "a/b");
        for query in ["prefix=a&prefix=b", "prefix=%", "praefix=a", "prefix"] {
            assert!(read(query).is_err(), "{query}");
        }
    }
}
