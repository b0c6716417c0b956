//! The rules of one filter, and the decision about a request.

use crate::{Decision, RequestView};

/// The rules of one filter, ready for matching.
#[derive(Debug)]
pub struct RuleSet {}

impl RuleSet {
    /// Decides about one request.
    pub fn decide(&self, request: &impl RequestView) -> Decision<'_> {
        let _ = request;
        Decision::Unguarded
    }
}
