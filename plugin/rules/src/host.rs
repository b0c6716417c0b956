//! Hosts: patterns in rules, and what a request's authority says.

use std::borrow::Cow;

use crate::encoding;
use crate::faults::{Fault, Located};

/// Which hosts a rule is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HostPattern {
    /// Every host, and requests without one.
    Any,
    /// This one, in lower case.
    Exact(Box<str>),
    /// Every host that ends in a dot and this, in lower case.
    Under(Box<str>),
}

impl HostPattern {
    pub(crate) fn parse(source: &Located<'_>) -> Result<Self, Fault> {
        let text = source.text;
        let (name, is_wildcard) = match text.strip_prefix("*.") {
            Some(suffix) => (suffix, true),
            None => (text, false),
        };
        let name_at = text.len() - name.len();
        if text == "*" {
            return Err(source.fault(0, "for any host, leave the host out"));
        }
        if name.starts_with('[') {
            let inside = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
            let is_address = inside.is_some_and(|inside| inside.parse::<std::net::Ipv6Addr>().is_ok());
            let is_good = is_address && !is_wildcard;
            return if is_good {
                Ok(Self::Exact(name.to_ascii_lowercase().into()))
            } else {
                Err(bad_host(source, name_at))
            };
        }
        if let Some(at) = name.find(':') {
            return Err(source.fault(name_at + at, "hosts are matched without their port: leave it out"));
        }
        if let Some(at) = name.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.')) {
            return Err(bad_host(source, name_at + at));
        }
        if name.split('.').any(str::is_empty) {
            return Err(bad_host(source, name_at));
        }
        let name = name.to_ascii_lowercase().into();
        Ok(if is_wildcard { Self::Under(name) } else { Self::Exact(name) })
    }
}

fn bad_host(source: &Located<'_>, at: usize) -> Fault {
    source.fault(at, "expected a host such as pay.example.com, or *.example.com for all hosts under it")
}

/// The host of a request: without user and port, in lower case, without the dot that ends an absolute name.
pub(crate) fn host_of(authority: &[u8]) -> Cow<'_, str> {
    let decoded = if authority.contains(&b'%') { encoding::decode(authority).into() } else { Cow::Borrowed(authority) };
    match decoded {
        Cow::Borrowed(authority) => String::from_utf8_lossy(host_part(authority)).lower_case(),
        Cow::Owned(authority) => Cow::Owned(String::from_utf8_lossy(host_part(&authority)).to_ascii_lowercase()),
    }
}

fn host_part(authority: &[u8]) -> &[u8] {
    let host = authority.rsplit(|&byte| byte == b'@').next().unwrap_or_default().trim_ascii();
    let end = match host.iter().position(|&byte| byte == b']') {
        Some(bracket) if host.first() == Some(&b'[') => bracket + 1,
        _ => host.iter().position(|&byte| byte == b':').unwrap_or(host.len()),
    };
    let mut name = host.get(..end).unwrap_or_default();
    while let Some(shorter) = name.strip_suffix(b".") {
        name = shorter;
    }
    name
}

trait LowerCase<'a> {
    fn lower_case(self) -> Cow<'a, str>;
}

impl<'a> LowerCase<'a> for Cow<'a, str> {
    fn lower_case(self) -> Self {
        if self.bytes().any(|byte| byte.is_ascii_uppercase()) { Cow::Owned(self.to_ascii_lowercase()) } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_requests() {
        let check =
            |authority: &str, expected: &str| assert_eq!(host_of(authority.as_bytes()), expected, "{authority}");
        check("pay.example.com", "pay.example.com");
        check("Pay.EXAMPLE.com:8443", "pay.example.com");
        check("pay.example.com.", "pay.example.com");
        check("pay.example.com.:80", "pay.example.com");
        check("user:secret@pay.example.com:80", "pay.example.com");
        check("pay%2Eexample.com", "pay.example.com");
        check("[::1]:80", "[::1]");
        check("[2001:DB8::1]", "[2001:db8::1]");
        check("127.0.0.1:80", "127.0.0.1");
        check("", "");
    }
}
