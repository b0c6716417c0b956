//! The rule language of Turnstile: which requests are guarded, and by which lock key.

mod config;
mod duration;
mod encoding;
mod faults;
mod host;
mod json;
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
pub use request::{Decision, HeaderValues, KeyPart, RequestFault, RequestView};
pub use rule::{OnHostUnavailable, OnLost, Rule};
pub use set::RuleSet;

/// The longest lock key, namespace included, in bytes; the same number as the session protocol's.
pub const KEY_MAX_BYTES: usize = 512;
