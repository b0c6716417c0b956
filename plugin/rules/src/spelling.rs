//! Request targets: the plain path behind harmless spellings, and everything an ambiguous one may be read as.
//!
//! A path is *plain* if every sane reader sees the same segments: escapes of ordinary bytes, doubled and trailing
//! slashes and `.` segments change nothing. It is *ambiguous* if readers differ, as about `%2F`, `;` or `..`. An ambiguous
//! path is never granted a lock; [`readings`] lists what upstreams make of it, so that none of them lets it slip past.

use std::borrow::Cow;

use crate::encoding;

/// The longest ambiguous path of which the readings are listed, in bytes: there can be 192 of them.
pub(crate) const AMBIGUOUS_MAX_BYTES: usize = 2 * 1024;

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

/// How one upstream might read a path.
#[derive(Clone, Copy, Debug)]
struct Reader {
    escapes: Escapes,
    separators: Separators,
    /// Ends a segment at `;`, drops its control characters and outer spaces.
    trims: bool,
    /// Resolves `..`; other readers take it for a name.
    resolves_parents: bool,
    /// Ends the path at `#`; other readers take it for a letter.
    ends_at_fragment: bool,
    /// Ends the path at an escaped `?` or `#`.
    ends_at_escaped_query: bool,
    /// Ends the path at a NUL.
    ends_at_nul: bool,
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
            ends_at_fragment: true,
            ends_at_escaped_query: false,
            ends_at_nul: false,
        };
        Spelling::Plain(Cow::Owned(plain.read(path)))
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
    // No reader looks for the path behind the first '?'.
    let path = target.split(|&byte| byte == b'?').next().unwrap_or_default();
    readers(path).into_iter().map(move |reader| reader.read(path))
}

/// Every combination of what readers may do, as far as it makes a difference to this path.
fn readers(path: &[u8]) -> Vec<Reader> {
    const YES_NO: &[bool] = &[true, false];
    let mut bare = Vec::new();
    for &byte in path {
        bare.push(byte);
        collapse(&mut bare);
    }
    let has_escape = path.contains(&b'%');
    let has = |what: fn(&u8) -> bool| bare.iter().any(what);
    let if_any = |what| if has(what) { YES_NO } else { &[false] };
    let escapes: &[Escapes] = if has_escape { &[Escapes::Once, Escapes::Fully] } else { &[Escapes::Once] };
    let separators: &[Separators] = match (path.contains(&b'\\'), has_escape) {
        (false, false) => &[Separators::Slash],
        (true, false) => &[Separators::Slash, Separators::SlashAndBackslash],
        (false, true) => &[Separators::Slash, Separators::EscapedToo],
        (true, true) => &[Separators::Slash, Separators::SlashAndBackslash, Separators::EscapedToo],
    };
    let mut readers = Vec::new();
    for &escapes in escapes {
        for &separators in separators {
            for &trims in if_any(|byte| matches!(byte, b';' | b' ') || byte.is_ascii_control()) {
                for &resolves_parents in if_any(|byte| *byte == b'.') {
                    for &ends_at_fragment in if_any(|byte| *byte == b'#') {
                        for &ends_at_escaped_query in if_any(|byte| matches!(byte, b'?' | b'#')) {
                            for &ends_at_nul in if_any(|byte| *byte == 0) {
                                readers.push(Reader {
                                    escapes,
                                    separators,
                                    trims,
                                    resolves_parents,
                                    ends_at_fragment,
                                    ends_at_escaped_query,
                                    ends_at_nul,
                                });
                            }
                        }
                    }
                }
            }
        }
    }
    readers
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
    /// A path in canonical form, as this reader understands it.
    fn read(self, path: &[u8]) -> String {
        let path = if self.ends_at_fragment { path_of(path) } else { path };
        let mut canonical = String::with_capacity(path.len());
        let mut starts = Vec::new();
        let mut segment = Vec::new();
        let mut rest = Some(without_authority(path));
        while let Some(path) = rest {
            rest = self.take_segment(path, &mut segment);
            if let Some(end) = segment.iter().position(|&byte| self.ends_at(byte)) {
                segment.truncate(end);
                rest = None;
            }
            if self.trims {
                trim(&mut segment);
            }
            match segment.as_slice() {
                b"" | b"." => {}
                b".." if self.resolves_parents => canonical.truncate(starts.pop().unwrap_or(0)),
                _ => {
                    starts.push(canonical.len());
                    canonical.push('/');
                    encoding::encode(&segment, &mut canonical);
                }
            }
        }
        if canonical.is_empty() { "/".to_owned() } else { canonical }
    }

    /// Decodes the first segment of `path` into `segment`; what follows its separator is left.
    fn take_segment<'p>(self, path: &'p [u8], segment: &mut Vec<u8>) -> Option<&'p [u8]> {
        segment.clear();
        let mut rest = path;
        while let Some((&byte, after)) = rest.split_first() {
            let decoded = encoding::escape(rest);
            rest = if decoded.is_some() { rest.get(3..).unwrap_or_default() } else { after };
            segment.push(decoded.unwrap_or(byte));
            let is_escaped = self.escapes == Escapes::Fully && collapse(segment) || decoded.is_some();
            if self.is_separator(segment.last().copied(), is_escaped) {
                segment.pop();
                return Some(rest);
            }
        }
        None
    }

    fn ends_at(self, byte: u8) -> bool {
        match byte {
            0 => self.ends_at_nul,
            b'?' | b'#' => self.ends_at_escaped_query,
            _ => false,
        }
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

/// Trims a segment as lenient upstreams do.
fn trim(segment: &mut Vec<u8>) {
    let parameter = segment.iter().position(|&byte| byte == b';');
    segment.truncate(parameter.unwrap_or(segment.len()));
    segment.retain(|byte| !byte.is_ascii_control());
    segment.truncate(segment.trim_ascii_end().len());
    segment.drain(..segment.len() - segment.trim_ascii_start().len());
}

/// The path of an absolute-form target.
fn without_authority(path: &[u8]) -> &[u8] {
    if path.first() == Some(&b'/') {
        return path;
    }
    let is_scheme = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    let scheme_end = path.iter().take_while(is_scheme).count();
    if scheme_end == 0 || !path.get(scheme_end..).is_some_and(|rest| rest.starts_with(b"://")) {
        return path;
    }
    let after_scheme = path.get(scheme_end + 3..).unwrap_or_default();
    let path_start = after_scheme.iter().position(|&byte| byte == b'/').unwrap_or(after_scheme.len());
    after_scheme.get(path_start..).unwrap_or_default()
}
