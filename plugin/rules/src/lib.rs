//! The rule language of Turnstile: which requests are guarded, and by which lock key.
//!
//! Pure: no I/O, no proxy SDK; compiles for `wasm32-unknown-unknown`. The filter parses its configuration with
//! [`FilterConfig::parse`] and asks [`RuleSet::decide`] about every request; `turnstile guard` makes such a
//! configuration with [`parse_rules_file`] and [`filter_config_json`].
//!
//! # Rules
//!
//! A rule is one line:
//!
//! ```text
//! METHOD[,METHOD...] [HOST]/PATH key=TEMPLATE[,TEMPLATE...] [OPTION=VALUE...]
//!
//! POST /accounts/{id}/transfer                key=account:{id} wait=5s
//! POST,PUT pay.example.com/accounts/{id}      key=account:{id}
//! *    *.example.com/reports/{*path}          key=report:{path} wait=0 hold=10m
//! POST /import                                key=import:{header.x-tenant}:{query.table}
//! POST /move/{from}                           key=account:{from},account:{query.to} wait=5s
//! GET  /accounts/{id}                         key=account:{id} mode=shared queue=100
//! ```
//!
//! or, in the filter's JSON, an object of the same meaning:
//!
//! ```json
//! { "name": "transfer",
//!   "match": { "host": "pay.example.com", "methods": ["POST"], "path": "/accounts/{id}/transfer" },
//!   "key": "account:{id}", "mode": "exclusive", "wait": "5s", "fail_fast": "off",
//!   "hold": "60s", "lock_delay": "15s", "reentrant": "off",
//!   "on_lost": "abort", "on_host_unavailable": "deny" }
//! ```
//!
//! All values of an object are strings. Several keys are a list, `"keys": ["account:{from}", "account:{query.to}"]` in
//! place of `"key"`; several modes are a list too.
//!
//! | option | values | default | meaning |
//! |---|---|---|---|
//! | `key` | 1 to 16 key templates | required | which locks the request needs, all of them at once |
//! | `mode` | `exclusive`, `shared`, `limit:N` (N to 65535) | `exclusive` | how many may hold a key at once; one mode for all keys, or one for each |
//! | `wait` | 0 to 10m | 10s | how long a request waits for the lock; 0 is "try" |
//! | `queue` | 1 to 1000000 | the host's limit | rejected at once when so many wait for one of the keys already |
//! | `fail_fast` | `on`, `off` | `off` | rejected at once when the turn is not to be expected within the wait |
//! | `hold` | above 0, to 1h | 60s | the longest hold |
//! | `lock_delay` | 0 to 1h | 15s | quarantine of the keys after a hold that ended uncleanly |
//! | `reentrant` | `on`, `off` | `off` | requests that bring the holder secret of a live hold join it |
//! | `on_lost` | `abort`, `continue` | `abort` | what becomes of a request whose lock is lost |
//! | `on_host_unavailable` | `deny`, `allow` | `deny` | what becomes of a request when no host answers |
//! | `name` | printable ASCII | what the rule matches | unique; for logs and people |
//!
//! Durations are whole numbers with a unit: `250ms`, `5s`, `2m`, `1h`; or a bare `0`. A rules file has one rule a line,
//! and `#` at the start of a word begins a comment; or it is a JSON array of rules.
//!
//! **Method**: names, or `*` for every method. A request's method matches in any letter case, since some upstreams
//! take `post` for `POST`. `GET` does not include `HEAD`.
//!
//! **Host**: `pay.example.com`, or `*.example.com` for every host under it at any depth. Case, port and a final dot do
//! not matter. A rule without a host is for every host. A rule with one guards that host only: if the upstream answers
//! to other names too, leave the host out, or let Envoy's virtual host admit no others.
//!
//! **Path template**: segments to be met exactly, `{name}` for any one segment, `{*name}` at the end for all that is
//! left (at least one segment). A parameter fills a whole segment.
//!
//! **Key template**: `{name}` is a parameter of the path, `{query.NAME}` a query parameter, `{header.NAME}` a header;
//! all else is literal: visible ASCII without commas, braces doubled. A template without placeholders is one lock for
//! all. Rules with the same key share the lock. Between two values there must be a character that neither can contain,
//! such as `:` or `/`, so that different values never make the same key. The full key is `namespace/key`, at most
//! [`KEY_MAX_BYTES`] bytes.
//!
//! **Several keys** are granted together or not at all. If two of them come out equal for a request (a transfer from an
//! account to itself), it needs that key once; in exclusive mode if their modes differ.
//!
//! **Mode**: `exclusive` is one holder, `shared` any number of them, `limit:N` at most N. Different modes exclude each
//! other, whichever rule they come from: a request in mode `shared` waits for one that holds the key in any other mode.
//! Among holders with different limits the smallest counts.
//!
//! # Which rule, if several match
//!
//! 1. The host: an exact one, then the longest wildcard, then none.
//! 2. The path, segment by segment from the left: exact, then `{name}`, then `{*name}`.
//! 3. The method: a named one, then `*`.
//!
//! A rule counts only if it matches in all three; a better match in one of them hides nothing. So with `GET
//! /accounts/me` and `POST /accounts/{id}`, a `POST /accounts/me` gets the second. Two rules for the same host, method
//! and path are refused.
//!
//! # No way around a lock by spelling
//!
//! Paths are matched in a canonical form. Spellings that every server reads alike make no difference: escapes of
//! ordinary characters (`%34%32` is `42`), doubled and trailing slashes, `.` segments. Spellings that servers read
//! *differently* are never given a lock. If such a path is guarded in any reading of it, the request is refused with
//! status 400, and otherwise it passes unguarded:
//!
//! - escaped slashes and backslashes (`%2F`, `%5C`), backslashes, `..` segments;
//! - path parameters (`;jsessionid=..`), also escaped; an escaped `?` or `#`; a fragment;
//! - control characters, escaped or not, NUL among them; a space at the start or end of a segment;
//! - invalid escapes (`%zz`, `%u0061`) and doubly escaped bytes (`%2534`);
//! - targets that do not begin with a slash; ambiguous paths beyond 2 KiB (refused whatever they say, if there is any
//!   rule for the host and method).
//!
//! Every value in a key is decoded, and written with every byte outside `[A-Za-z0-9-._~@]` as `%XX`. A request is also
//! refused with status 400 if a query parameter or header of its key
//!
//! - is missing or empty,
//! - occurs more than once (names of query parameters that differ only in case, or in spaces around them, count as the
//!   same, and a comma in a header as two values),
//! - contains a control character, or a space at its start or end, or, in a query, an invalid escape or a `;` beside
//!   it;
//!
//! or if a key is too long. One key in doubt refuses the request, whatever the others are.
//!
//! What spelling rules cannot see is what the application itself takes for the same: see the README's list.

mod config;
mod duration;
mod encoding;
mod faults;
mod host;
mod json;
mod keys;
mod mode;
mod number;
mod query;
mod raw;
mod request;
mod routes;
mod rule;
mod set;
mod spelling;
mod template;

pub use config::{FilterConfig, filter_config_json, parse_rules_file};
pub use faults::{Excerpt, Fault, Faults};
pub use keys::LockKeys;
pub use mode::Mode;
pub use request::{Decision, HeaderValues, KeyPart, RequestFault, RequestView};
pub use rule::{OnHostUnavailable, OnLost, Rule};
pub use set::RuleSet;

/// The longest lock key, namespace included, in bytes; the same number as the session protocol's.
pub const KEY_MAX_BYTES: usize = 512;

/// The keys that a rule may have; as many as the session protocol takes for one request.
pub const KEYS_MAX: usize = 16;

/// The clusters of hosts that a filter may have.
pub const CLUSTERS_MAX: usize = 16;
