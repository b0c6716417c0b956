//! Request targets: the plain path behind harmless spellings, and everything an ambiguous one may be read as.
//!
//! A path is *plain* if every sane reader sees the same segments: escapes of ordinary bytes, doubled and trailing
//! slashes and `.` segments change nothing. It is *ambiguous* if readers differ, as about `%2F`, `;` or `..`. An ambiguous
//! path is never granted a lock; [`readings`] lists what upstreams make of it, so that none of them lets it slip past.

use std::borrow::Cow;

use crate::encoding;

/// The longest ambiguous path of which the readings are listed, in bytes: there are up to 48 of them.
pub(crate) const AMBIGUOUS_MAX_BYTES: usize = 8 * 1024;

/// How a request target is spelled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Spelling<'t> {
    /// It has no path (`*`, or that of a CONNECT).
    NoPath,
    /// Its path in canonical form: `/`, or segments that are each preceded by a slash and encoded as key values are.
    Plain(Cow<'t, str>),
    /// It can be read in several ways, because it contains this.
    Ambiguous(&'static str),
}

/// How one upstream might read an ambiguous path.
#[derive(Clone, Copy, Debug)]
struct Reader {
    escapes: Escapes,
    separators: Separators,
    /// Ends a segment at `;`, and the path at an escaped `?`, `#` or NUL; drops control characters and outer spaces.
    trims: bool,
    /// Resolves `..`; other readers take it for a name.
    resolves_parents: bool,
    /// Takes `#` for the end of the path; other readers take it for a letter.
    cuts_fragment: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escapes {
    Once,
    /// Until nothing changes, the old form `%u00XX` included.
    Fully,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Separators {
    Slash,
    SlashAndBackslash,
    /// The escaped ones too.
    EscapedToo,
}

/// Tells how `target` (a path with its query) is spelled.
pub(crate) fn spelling(target: &[u8]) -> Spelling<'_> {
    let path = path_of(target);
    if matches!(target, b"" | b"*") {
        Spelling::NoPath
    } else if target.contains(&b'#') {
        Spelling::Ambiguous("a fragment ('#')")
    } else if path.first() != Some(&b'/') {
        Spelling::Ambiguous("no slash at its start")
    } else if let Some(path) = canonical_already(path) {
        Spelling::Plain(Cow::Borrowed(path))
    } else if let Some(reason) = ambiguity(path) {
        Spelling::Ambiguous(reason)
    } else {
        let plain = Reader {
            escapes: Escapes::Once,
            separators: Separators::Slash,
            trims: false,
            resolves_parents: true,
            cuts_fragment: true,
        };
        Spelling::Plain(Cow::Owned(plain.read(target)))
    }
}

/// The query of a target that has no fragment.
pub(crate) fn query_of(target: &[u8]) -> &[u8] {
    let after_path = target.get(path_of(target).len()..).unwrap_or_default();
    after_path.strip_prefix(b"?").unwrap_or_default()
}

/// What makes a path ambiguous, if anything does.
pub(crate) fn ambiguity(path: &[u8]) -> Option<&'static str> {
    if path.contains(&b'\\') {
        return Some("a backslash");
    }
    if encoding::has_invalid_escape(path) {
        return Some("an invalid percent escape");
    }
    path.split(|&byte| byte == b'/').find_map(|segment| value_ambiguity(&encoding::decode(segment)))
}

/// What makes a decoded segment ambiguous, if anything does.
fn value_ambiguity(segment: &[u8]) -> Option<&'static str> {
    let by_byte = segment.iter().find_map(|byte| match byte {
        b'/' => Some("an escaped slash"),
        b'\\' => Some("an escaped backslash"),
        b';' => Some("a path parameter (';')"),
        b'?' => Some("an escaped '?'"),
        b'#' => Some("an escaped '#'"),
        byte if byte.is_ascii_control() => Some("a control character"),
        _ => None,
    });
    by_byte.or(if segment == b".." {
        Some("a '..' segment")
    } else if segment.first() == Some(&b' ') || segment.last() == Some(&b' ') {
        Some("a segment with a space at its start or end")
    } else if encoding::has_escape(segment) {
        Some("a doubly escaped byte")
    } else {
        None
    })
}

/// The canonical form of an ambiguous path in the eyes of every reader that could matter; some may be equal.
pub(crate) fn readings(target: &[u8]) -> impl Iterator<Item = String> {
    let has = |byte: u8| target.contains(&byte);
    let (has_escape, has_backslash, has_fragment) = (has(b'%'), has(b'\\'), has(b'#'));
    let separators = [Separators::Slash, Separators::SlashAndBackslash, Separators::EscapedToo];
    let separators = separators.into_iter().filter(move |separators| match separators {
        Separators::Slash => true,
        Separators::SlashAndBackslash => has_backslash,
        Separators::EscapedToo => has_escape,
    });
    let escapes = [Escapes::Once, Escapes::Fully].into_iter().filter(move |&it| it == Escapes::Once || has_escape);
    let fragments = [true, false].into_iter().filter(move |&cuts_fragment| cuts_fragment || has_fragment);
    separators.flat_map(move |separators| {
        let fragments = fragments.clone();
        escapes.clone().flat_map(move |escapes| {
            fragments.clone().flat_map(move |cuts_fragment| {
                [(false, true), (true, true), (false, false), (true, false)].into_iter().map(
                    move |(trims, resolves_parents)| {
                        Reader { escapes, separators, trims, resolves_parents, cuts_fragment }.read(target)
                    },
                )
            })
        })
    })
}

/// Up to the query or fragment.
fn path_of(target: &[u8]) -> &[u8] {
    let end = target.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(target.len());
    target.get(..end).unwrap_or_default()
}

/// The fast way for nearly every request: one scan, and nothing copied.
fn canonical_already(path: &[u8]) -> Option<&str> {
    let mut previous = 0;
    for &byte in path {
        // A dot at the start of a segment may be all of it.
        if !(encoding::is_canonical(byte) || byte == b'/') || previous == b'/' && matches!(byte, b'/' | b'.') {
            return None;
        }
        previous = byte;
    }
    if previous == b'/' && path.len() > 1 { None } else { std::str::from_utf8(path).ok() }
}

impl Reader {
    /// The path of `target` in canonical form, as this reader understands it.
    fn read(self, target: &[u8]) -> String {
        let path = if self.cuts_fragment {
            path_of(target)
        } else {
            target.split(|&byte| byte == b'?').next().unwrap_or_default()
        };
        let mut segments: Vec<Vec<u8>> = Vec::new();
        for mut segment in self.split(without_authority(path)) {
            let goes_on = !self.trims || trim(&mut segment);
            match segment.as_slice() {
                b"" | b"." => {}
                b".." if self.resolves_parents => drop(segments.pop()),
                _ => segments.push(segment),
            }
            if !goes_on {
                break;
            }
        }
        let mut canonical = String::with_capacity(path.len());
        for segment in &segments {
            canonical.push('/');
            encoding::encode(segment, &mut canonical);
        }
        if canonical.is_empty() { "/".to_owned() } else { canonical }
    }

    /// Splits into decoded segments.
    fn split(self, path: &[u8]) -> Vec<Vec<u8>> {
        let mut segments = Vec::new();
        let mut segment = Vec::new();
        let mut rest = path;
        while let Some((&byte, after)) = rest.split_first() {
            let (byte, is_escaped, length) = match encoding::escape(rest) {
                Some(decoded) => (decoded, true, 3),
                None => (byte, false, 1),
            };
            rest = if is_escaped { rest.get(length..).unwrap_or_default() } else { after };
            segment.push(byte);
            let is_escaped = self.escapes == Escapes::Fully && collapse(&mut segment) || is_escaped;
            if self.is_separator(segment.last().copied(), is_escaped) {
                segment.pop();
                segments.push(std::mem::take(&mut segment));
            }
        }
        segments.push(segment);
        segments
    }

    fn is_separator(self, byte: Option<u8>, is_escaped: bool) -> bool {
        match byte {
            Some(b'/') => !is_escaped || self.separators == Separators::EscapedToo,
            Some(b'\\') if is_escaped => self.separators == Separators::EscapedToo,
            Some(b'\\') => self.separators != Separators::Slash,
            _ => false,
        }
    }
}

/// Decodes the escape at the end of `segment`, and the one that this may complete, and so on.
fn collapse(segment: &mut Vec<u8>) -> bool {
    let mut is_changed = false;
    loop {
        let tail = |length: usize| segment.len().checked_sub(length).and_then(|start| segment.get(start..));
        let found = tail(3).and_then(encoding::escape).map(|byte| (byte, 3));
        let found = found.or_else(|| tail(6).and_then(encoding::unicode_escape).map(|byte| (byte, 6)));
        let Some((byte, length)) = found else {
            return is_changed;
        };
        segment.truncate(segment.len() - length);
        segment.push(byte);
        is_changed = true;
    }
}

/// Trims a segment as lenient upstreams do; false if the path ends in it.
fn trim(segment: &mut Vec<u8>) -> bool {
    let path_end = segment.iter().position(|byte| matches!(byte, b'?' | b'#' | 0));
    segment.truncate(path_end.unwrap_or(segment.len()));
    let parameter = segment.iter().position(|&byte| byte == b';');
    segment.truncate(parameter.unwrap_or(segment.len()));
    segment.retain(|byte| !byte.is_ascii_control());
    *segment = segment.trim_ascii().to_vec();
    path_end.is_none()
}

/// The path of an absolute-form target.
fn without_authority(path: &[u8]) -> &[u8] {
    if path.first() == Some(&b'/') {
        return path;
    }
    let Some(scheme_end) = path.windows(3).position(|window| window == b"://") else {
        return path;
    };
    let after_scheme = path.get(scheme_end + 3..).unwrap_or_default();
    let path_start = after_scheme.iter().position(|&byte| byte == b'/').unwrap_or(after_scheme.len());
    after_scheme.get(path_start..).unwrap_or_default()
}
