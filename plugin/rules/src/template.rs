//! Path templates and key templates.

use crate::encoding;
use crate::faults::{Fault, FaultList, Located};
use crate::request::KeyPart;
use crate::spelling;

/// The deepest path template, in segments.
const SEGMENTS_MAX: usize = 64;

/// A path template: what a path must look like.
#[derive(Debug)]
pub(crate) struct PathTemplate {
    pub(crate) segments: Vec<Segment>,
}

/// One segment of a path template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// This segment, in canonical form.
    Static(Box<str>),
    /// Any one segment.
    One(Box<str>),
    /// All that is left, at least one segment; always the last.
    Tail(Box<str>),
}

/// A key template: literals, and the parts of the request between them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KeyTemplate {
    pub(crate) pieces: Vec<Piece>,
}

/// A piece of a key template.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Literal(Box<str>),
    /// The path parameter of this index, counted over the parameters of the path template.
    Path(usize),
    /// A query parameter or a header.
    Part(KeyPart),
}

impl PathTemplate {
    pub(crate) fn parse(source: &Located<'_>, faults: &mut FaultList) -> Option<Self> {
        let Some(after_slash) = source.text.strip_prefix('/') else {
            faults.push(source.fault(0, "a path template starts with '/'"));
            return None;
        };
        if after_slash.is_empty() {
            return Some(Self { segments: Vec::new() });
        }
        let mut segments: Vec<Segment> = Vec::new();
        let mut is_good = true;
        let mut start = 1;
        for text in after_slash.split('/') {
            let segment = source.part(start, start + text.len());
            start += text.len() + 1;
            match faults.keep(Segment::parse(&segment, &segments)) {
                Some(parsed) => segments.push(parsed),
                None => is_good = false,
            }
        }
        if segments.len() > SEGMENTS_MAX {
            faults.push(source.fault(0, format!("a path template has at most {SEGMENTS_MAX} segments")));
            return None;
        }
        is_good.then_some(Self { segments })
    }

    /// The names of its parameters, in order.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(Segment::parameter)
    }
}

impl Segment {
    fn parse(source: &Located<'_>, before: &[Segment]) -> Result<Self, Fault> {
        let text = source.text;
        if matches!(before.last(), Some(Segment::Tail(_))) {
            return Err(source.fault(0, "nothing can follow a tail parameter"));
        }
        let Some(inside) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) else {
            return Self::parse_static(source);
        };
        let name = inside.strip_prefix('*').unwrap_or(inside);
        let name_at = text.len() - 1 - name.len();
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')) {
            let expected =
                "expected a parameter's name of letters, digits, '_' and '-', as in {id}, or {*rest} for a tail";
            return Err(source.fault(name_at, expected));
        }
        if before.iter().filter_map(Segment::parameter).any(|earlier| earlier == name) {
            return Err(source.fault(name_at, format!("the parameter {{{name}}} is there twice")));
        }
        let is_tail = name.len() < inside.len();
        Ok(if is_tail { Self::Tail(name.into()) } else { Self::One(name.into()) })
    }

    fn parse_static(source: &Located<'_>) -> Result<Self, Fault> {
        let text = source.text;
        if let Some(at) = text.find(['{', '}']) {
            return Err(
                source.fault(at, "a parameter fills a whole segment, as in /{id}/; a literal brace is %7B or %7D")
            );
        }
        if let Some(at) = text.find(|c: char| c == '?' || c == '#' || c.is_whitespace() || c.is_control()) {
            return Err(source.fault(at, "a path template has no query, fragment or space (%20 is an escaped space)"));
        }
        let decoded = encoding::decode(text.as_bytes());
        match decoded.as_slice() {
            b"" => Err(source.fault(0, "an empty segment: paths are matched without doubled and trailing slashes")),
            b"." => Err(source.fault(0, "a '.' segment: paths are matched without them")),
            b"*" | b"**" => Err(source.fault(0, "not a wildcard; write {name} for one segment, {*name} for a tail")),
            _ => match spelling::ambiguity(text.as_bytes()) {
                Some(reason) => {
                    Err(source.fault(0, format!("never matches: a request with {reason} in its path is refused")))
                }
                None => {
                    let mut canonical = String::new();
                    encoding::encode(&decoded, &mut canonical);
                    Ok(Self::Static(canonical.into()))
                }
            },
        }
    }

    pub(crate) fn parameter(&self) -> Option<&str> {
        match self {
            Self::Static(_) => None,
            Self::One(name) | Self::Tail(name) => Some(name),
        }
    }
}

impl KeyTemplate {
    pub(crate) fn parse(source: &Located<'_>, path: Option<&PathTemplate>, faults: &mut FaultList) -> Option<Self> {
        if source.text.is_empty() {
            faults.push(source.fault(0, "a key template must not be empty"));
            return None;
        }
        let mut parser = KeyParser { source, path, pieces: Vec::new(), literal: String::new() };
        let mut is_good = true;
        let mut at = 0;
        while let Some(c) = source.text.get(at..).and_then(|rest| rest.chars().next()) {
            let (length, outcome) = parser.take(at, c);
            is_good &= faults.keep(outcome).is_some();
            at += length;
        }
        parser.end_literal();
        let pieces = parser.pieces;
        is_good.then_some(Self { pieces })
    }

    /// How long all literals are together, in bytes.
    pub(crate) fn literal_len(&self) -> usize {
        let lengths = self.pieces.iter().map(|piece| match piece {
            Piece::Literal(text) => text.len(),
            Piece::Path(_) | Piece::Part(_) => 0,
        });
        lengths.sum()
    }
}

struct KeyParser<'s, 'a> {
    source: &'s Located<'a>,
    /// None if the path template has faults of its own; then its parameters are not known.
    path: Option<&'s PathTemplate>,
    pieces: Vec<Piece>,
    literal: String,
}

impl KeyParser<'_, '_> {
    /// Takes what starts at byte `at` with `c`; tells how many bytes that was.
    fn take(&mut self, at: usize, c: char) -> (usize, Result<(), Fault>) {
        let rest = self.source.text.get(at..).unwrap_or_default();
        if let Some(brace) = [("{{", '{'), ("}}", '}')].iter().find(|(text, _)| rest.starts_with(text)) {
            self.literal.push(brace.1);
            return (2, Ok(()));
        }
        match c {
            '{' => match rest.find('}') {
                Some(end) => (end + 1, self.placeholder(at, rest.get(1..end).unwrap_or_default())),
                None => (rest.len(), Err(self.source.fault(at, "'{' is not closed; a literal brace is doubled: '{{'"))),
            },
            '}' => (1, Err(self.source.fault(at, "'}' closes nothing; a literal brace is doubled: '}}'"))),
            // The full keys of a request go to the upstream as one comma-separated list.
            ',' => (1, Err(self.source.fault(at, "a key has no commas; several keys are a list, \"keys\": [...]"))),
            c if c.is_ascii_graphic() => {
                self.literal.push(c);
                (1, Ok(()))
            }
            c => (c.len_utf8(), Err(self.source.fault(at, "a key has only visible ASCII characters and no spaces"))),
        }
    }

    fn placeholder(&mut self, at: usize, text: &str) -> Result<(), Fault> {
        let piece = self.piece(at, text)?;
        let is_apart = self.literal.bytes().any(|byte| !encoding::is_canonical(byte) && byte != b'%');
        self.end_literal();
        if !is_apart && self.pieces.iter().any(|piece| !matches!(piece, Piece::Literal(_))) {
            let message = "two values need a character between them that neither contains, such as ':' or '/', or else \
                           different requests could get the same key";
            return Err(self.source.fault(at, message));
        }
        let is_tail = |piece: &Piece| matches!(piece, Piece::Path(index) if self.is_tail(*index));
        if is_tail(&piece) && self.pieces.iter().any(is_tail) {
            return Err(self.source.fault(at, "a tail may stand in a key only once"));
        }
        self.pieces.push(piece);
        Ok(())
    }

    fn piece(&self, at: usize, text: &str) -> Result<Piece, Fault> {
        let name_at = at + 1 + text.find('.').map_or(0, |dot| dot + 1);
        match text.split_once('.') {
            Some(("query", "")) => Err(self.source.fault(name_at, "the query parameter's name is missing")),
            Some(("query", name)) if name.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Ok(Piece::Part(KeyPart::Query(name.into())))
            }
            Some(("query", _)) => {
                Err(self.source.fault(name_at, "the name of a query parameter is visible ASCII, not escaped"))
            }
            Some(("header", name)) => self.header(name_at, name),
            _ => self.path_parameter(at, text),
        }
    }

    fn header(&self, at: usize, name: &str) -> Result<Piece, Fault> {
        if name.is_empty() || !name.bytes().all(is_token_byte) {
            return Err(self.source.fault(at, "expected a header's name, as in {header.x-tenant}"));
        }
        if name.eq_ignore_ascii_case("host") {
            return Err(self.source.fault(at, "the host cannot be a part of a key; write a rule for each host"));
        }
        Ok(Piece::Part(KeyPart::Header(name.to_ascii_lowercase().into())))
    }

    fn path_parameter(&self, at: usize, text: &str) -> Result<Piece, Fault> {
        // Without a good path template, its own faults are told; which names it would have had is not known.
        let Some(path) = self.path else {
            return Ok(Piece::Path(0));
        };
        if let Some(index) = path.parameters().position(|name| name == text) {
            return Ok(Piece::Path(index));
        }
        let mut available: Vec<String> = path.parameters().map(|name| format!("{{{name}}}")).collect();
        available.extend(["{query.NAME}".to_owned(), "{header.NAME}".to_owned()]);
        let available = available.join(", ");
        Err(self.source.fault(at, format!("there is no {{{text}}} here; available: {available}")))
    }

    fn is_tail(&self, index: usize) -> bool {
        let mut parameters = self.path.iter().flat_map(|path| &path.segments).filter(|it| it.parameter().is_some());
        matches!(parameters.nth(index), Some(Segment::Tail(_)))
    }

    fn end_literal(&mut self) {
        if !self.literal.is_empty() {
            self.pieces.push(Piece::Literal(std::mem::take(&mut self.literal).into()));
        }
    }
}

/// Whether a byte may stand in a token of HTTP (RFC 9110, 5.6.2): a method or a header's name.
pub(crate) const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}
