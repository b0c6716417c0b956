//! The service behind the lock, from its URL.

use std::net::IpAddr;

/// Where the guarded service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// A name or an address, as Envoy wants it (no brackets).
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Why a URL names no service that can be guarded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamFault {
    /// TLS to the service is not spoken by guard.
    #[error("guard speaks plain HTTP to the service; for https, add the filter to an Envoy of yours (see envoy/)")]
    Https,
    /// Not a URL of the form that is understood.
    #[error("expected http://HOST:PORT, such as http://127.0.0.1:8080")]
    Form,
    /// Guard forwards every path as it is.
    #[error("expected no path after http://HOST:PORT: every path is passed on as it is")]
    Path,
}

impl std::str::FromStr for Upstream {
    type Err = UpstreamFault;

    fn from_str(url: &str) -> Result<Self, UpstreamFault> {
        if url.starts_with("https:") {
            return Err(UpstreamFault::Https);
        }
        let uri: hyper::Uri = url.parse().map_err(|_| UpstreamFault::Form)?;
        if uri.scheme_str() != Some("http") {
            return Err(UpstreamFault::Form);
        }
        let authority = uri.authority().ok_or(UpstreamFault::Form)?;
        if authority.as_str().contains('@') {
            return Err(UpstreamFault::Form);
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(UpstreamFault::Path);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port: authority.port_u16().unwrap_or(80) })
    }
}

impl Upstream {
    /// Whether the host is an address, which needs no name service.
    pub fn is_address(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_understood_or_refused_with_a_reason() {
        let upstream = |host: &str, port| Ok(Upstream { host: host.into(), port });
        for (url, expected) in [
            ("http://127.0.0.1:8080", upstream("127.0.0.1", 8080)),
            ("http://127.0.0.1:8080/", upstream("127.0.0.1", 8080)),
            ("http://[::1]:8080", upstream("::1", 8080)),
            ("http://billing.internal", upstream("billing.internal", 80)),
            ("https://billing.internal", Err(UpstreamFault::Https)),
            ("http://a/b", Err(UpstreamFault::Path)),
            ("127.0.0.1:8080", Err(UpstreamFault::Form)),
            ("http://user@a", Err(UpstreamFault::Form)),
            ("", Err(UpstreamFault::Form)),
        ] {
            assert_eq!(url.parse::<Upstream>(), expected, "{url}");
        }
    }
}
