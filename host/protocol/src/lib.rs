//! The session protocol between proxies and Turnstile hosts, and the names both sides share.
//!
//! The messages are generated from `proto/turnstile/v1/session.proto`, which says what each of them means.

/// The version of the session protocol that this build speaks. A host also speaks the version before.
pub const VERSION: u32 = 1;

/// The full name of the session method, as it stands in a gRPC request's `:path` after the slash.
pub const SERVICE: &str = "turnstile.v1.LockService";

/// The method's own name.
pub const METHOD: &str = "Session";

/// The longest lock key, namespace included, in bytes.
pub const KEY_MAX_BYTES: usize = 512;

/// Keys that one Acquire may name at most.
pub const KEYS_PER_ACQUIRE_MAX: usize = 16;

/// The largest N of the mode "at most N holders at once".
pub const LIMIT_MAX: u32 = 65_535;

/// The length of a holder secret, in bytes: the incarnation's name (8), and what nobody guesses (16).
pub const HOLDER_SECRET_BYTES: usize = 24;

/// The largest gRPC message that either side sends or takes, in bytes.
pub const MESSAGE_MAX_BYTES: usize = 1 << 20;

/// Items that a client's message may have at most. Above what fits into a message of 64 KiB, even of the smallest items.
pub const ITEMS_PER_MESSAGE_MAX: usize = 32_768;

/// The longest name of a node or worker in a Hello, in bytes.
pub const NAME_MAX_BYTES: usize = 256;

/// Names of the headers that the filter sets on guarded requests, and strips from what clients send.
pub mod headers {
    /// The fencing token: a decimal number below 2^63, one per key, comma-separated.
    pub const TOKEN: &str = "x-turnstile-token";
    /// The lock key, `namespace/name`, one per token, comma-separated.
    pub const KEY: &str = "x-turnstile-key";
    /// The holder secret in hexadecimal digits, for re-entry; stripped from clients unless a rule enables it.
    pub const HOLDER: &str = "x-turnstile-holder";
}

/// Messages of version 1 of the protocol.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/turnstile.v1.rs"));

    macro_rules! items {
        ($item:ident, $oneof:ident: $($variant:ident($message:ty)),+ $(,)?) => {$(
            impl From<$message> for $item {
                fn from(message: $message) -> Self {
                    Self { item: Some($oneof::Item::$variant(message)) }
                }
            }
        )+};
    }
    items!(ClientItem, client_item: Hello(Hello), Acquire(Acquire), Cancel(Cancel), Release(Release), Heartbeat(Heartbeat));
    items!(ServerItem, server_item: Welcome(Welcome), Grant(Grant), Reject(Reject), Lost(Lost), HeartbeatAck(HeartbeatAck), GoAway(GoAway));
}
