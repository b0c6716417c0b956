//! The words of the proxy-wasm ABI 0.2.1: status codes, map and buffer types, and how header maps cross the boundary.

/// What a hostcall answers.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    Ok = 0,
    NotFound = 1,
    BadArgument = 2,
    SerializationFailure = 3,
    ParseFailure = 4,
    InvalidMemoryAccess = 6,
    Empty = 7,
    CasMismatch = 8,
    InternalFailure = 10,
}

/// Which header map a hostcall means.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapType {
    RequestHeaders,
    RequestTrailers,
    ResponseHeaders,
    ResponseTrailers,
    GrpcInitialMetadata,
    GrpcTrailingMetadata,
    CallResponseHeaders,
    CallResponseTrailers,
}

impl MapType {
    /// The type with this number.
    pub fn from_wire(number: u32) -> Option<Self> {
        [
            Self::RequestHeaders,
            Self::RequestTrailers,
            Self::ResponseHeaders,
            Self::ResponseTrailers,
            Self::GrpcInitialMetadata,
            Self::GrpcTrailingMetadata,
            Self::CallResponseHeaders,
            Self::CallResponseTrailers,
        ]
        .get(number as usize)
        .copied()
    }
}

/// Which buffer a hostcall means.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferType {
    RequestBody,
    ResponseBody,
    GrpcMessage,
    VmConfiguration,
    PluginConfiguration,
    /// Bodies of other kinds of context; this host has none.
    Other,
}

impl BufferType {
    /// The type with this number.
    pub fn from_wire(number: u32) -> Self {
        match number {
            0 => Self::RequestBody,
            1 => Self::ResponseBody,
            5 => Self::GrpcMessage,
            6 => Self::VmConfiguration,
            7 => Self::PluginConfiguration,
            _ => Self::Other,
        }
    }
}

/// How much a log line matters.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Critical,
}

impl LogLevel {
    /// The level with this number; unknown ones are critical.
    pub fn from_wire(number: u32) -> Self {
        match number {
            0 => Self::Trace,
            1 => Self::Debug,
            2 => Self::Info,
            3 => Self::Warn,
            4 => Self::Error,
            _ => Self::Critical,
        }
    }
}

/// An ordered multimap of header names (lower case) to values (any bytes).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, Vec<u8>)>);

impl Headers {
    /// The first value of `name`, as Envoy gives it to a filter.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// The first value of `name` as text; bytes that are no UTF-8 are replaced.
    pub fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// All values of `name`, in order.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let name = name.to_ascii_lowercase();
        self.0.iter().filter(move |(n, _)| *n == name).map(|(_, v)| v.as_slice())
    }

    /// Every header, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// How many headers there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a value beside those that are there.
    pub fn add(&mut self, name: impl AsRef<str>, value: impl Into<Vec<u8>>) {
        self.0.push((name.as_ref().to_ascii_lowercase(), value.into()));
    }

    /// Puts one value in place of those that are there.
    pub fn set(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        let name = name.to_ascii_lowercase();
        match self.0.iter().position(|(n, _)| *n == name) {
            Some(place) => {
                self.0[place].1 = value.into();
                let mut seen = 0;
                self.0.retain(|(n, _)| {
                    seen += usize::from(*n == name);
                    *n != name || seen == 1
                });
            }
            None => self.0.push((name, value.into())),
        }
    }

    /// Takes every value of `name` away.
    pub fn remove(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        self.0.retain(|(n, _)| *n != name);
    }

    /// The map as the ABI carries it; an empty map is no bytes.
    pub fn to_wire(&self) -> Vec<u8> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let mut bytes = length(self.0.len()).to_vec();
        for (name, value) in &self.0 {
            bytes.extend(length(name.len()));
            bytes.extend(length(value.len()));
        }
        for (name, value) in &self.0 {
            bytes.extend(name.as_bytes());
            bytes.push(0);
            bytes.extend(value);
            bytes.push(0);
        }
        bytes
    }

    /// Reads a map as the ABI carries it; `None` if the bytes are none, or a name is no UTF-8.
    pub fn from_wire(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        let number = |place: usize| {
            let four = bytes.get(place..place.checked_add(4)?)?;
            Some(u32::from_le_bytes(four.try_into().ok()?) as usize)
        };
        let count = number(0)?;
        let mut place = count.checked_mul(8)?.checked_add(4)?;
        let mut headers = Self::default();
        for index in 0..count {
            let mut part = |size: usize| {
                let bytes = bytes.get(place..place.checked_add(size)?)?;
                place += size + 1;
                Some(bytes.to_vec())
            };
            let name = part(number(4 + index * 8)?)?;
            let value = part(number(8 + index * 8)?)?;
            headers.add(String::from_utf8(name).ok()?, value);
        }
        Some(headers)
    }
}

impl<N: AsRef<str>, V: Into<Vec<u8>>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut headers = Self::default();
        for (name, value) in pairs {
            headers.add(name, value);
        }
        headers
    }
}

fn length(size: usize) -> [u8; 4] {
    u32::try_from(size).expect("no header map is this large").to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_survives_the_boundary_and_broken_bytes_do_not() {
        let mut map: Headers = [("A", &b"1"[..]), ("b", b"\xff\0"), ("a", b"")].into_iter().collect();
        let wire = map.to_wire();
        assert_eq!(Headers::from_wire(&wire), Some(map.clone()));
        for cut in 1..wire.len() - 1 {
            assert_eq!(Headers::from_wire(&wire[..cut]), None, "cut at {cut}");
        }
        map.set("a", "2");
        assert_eq!(map.all("A").collect::<Vec<_>>(), [b"2"]);
        map.remove("A");
        assert_eq!(map.iter().collect::<Vec<_>>(), [("b", &b"\xff\0"[..])]);
    }
}
