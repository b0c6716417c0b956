//! The rows of the table: what stands in front of the route.

use super::program::Rows;

/// One thing that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// Envoy alone.
    NoFilter,
    /// A wasm filter that does nothing.
    NoopWasm,
    /// One check over HTTP, always allowed.
    AuthzHttp,
    /// One check over gRPC, always allowed.
    AuthzGrpc,
    /// Turnstile, acquire and release, on keys that its host owns.
    RepeatedKeys,
    /// Turnstile, acquire and release, every key for the first time: each is claimed in the store.
    FreshKeys,
}

/// How many keys [`Row::RepeatedKeys`] chooses from.
pub const REPEATED_KEYS: u32 = 1_000;

impl Row {
    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::NoFilter => "no filter",
            Self::NoopWasm => "wasm filter that does nothing",
            Self::AuthzHttp => "ext_authz HTTP",
            Self::AuthzGrpc => "ext_authz gRPC",
            Self::RepeatedKeys => "Turnstile, 1,000 keys",
            Self::FreshKeys => "Turnstile, keys never seen before",
        }
    }

    /// The filter that this row keeps of those in `overhead.yaml`.
    pub fn filter(self) -> Option<&'static str> {
        match self {
            Self::NoFilter => None,
            Self::NoopWasm => Some("wasm-noop"),
            Self::AuthzHttp => Some("ext-authz-http"),
            Self::AuthzGrpc => Some("ext-authz-grpc"),
            Self::RepeatedKeys | Self::FreshKeys => Some("turnstile"),
        }
    }
}

impl Rows for Row {
    const ALL: &'static [Self] =
        &[Self::NoFilter, Self::NoopWasm, Self::AuthzHttp, Self::AuthzGrpc, Self::RepeatedKeys, Self::FreshKeys];

    fn name(self) -> &'static str {
        match self {
            Self::NoFilter => "none",
            Self::NoopWasm => "noop",
            Self::AuthzHttp => "authz-http",
            Self::AuthzGrpc => "authz-grpc",
            Self::RepeatedKeys => "turnstile",
            Self::FreshKeys => "turnstile-fresh",
        }
    }
}
