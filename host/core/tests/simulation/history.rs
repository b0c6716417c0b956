//! What happened, and whether it was allowed to. Knows nothing of an engine's state: it judges by what clients
//! believed, what upstreams worked on, and what went in and out of the hosts.

use std::collections::BTreeMap;

use crate::log::Log;

pub(crate) mod families;
pub(crate) mod ledger;
pub(crate) mod ownership;
pub(crate) mod possessions;
pub(crate) mod tokens;
pub(crate) mod verdicts;

use ledger::Ledger;
use possessions::Possessions;
use tokens::Tokens;

/// One history, and all that is kept of it.
pub(crate) struct History {
    pub(crate) log: Log,
    /// I1: who believed to hold, and whose work went on.
    pub(crate) possessions: Possessions,
    /// I2: over all hosts.
    pub(crate) tokens: Tokens,
    /// I4, I5, I7: what each host was told and said, in its present run.
    pub(crate) ledgers: Vec<Ledger>,
    /// How often each request that was made has ended.
    endings: BTreeMap<usize, u32>,
}

impl History {
    pub(crate) fn new(ledgers: Vec<Ledger>, verbose: bool) -> Self {
        Self {
            log: Log { verbose, ..Log::default() },
            possessions: Possessions::default(),
            tokens: Tokens::default(),
            ledgers,
            endings: BTreeMap::new(),
        }
    }

    pub(crate) fn is_sound(&self) -> bool {
        self.log.violation.is_none()
    }

    /// A client has made request `ask` of the script.
    pub(crate) fn asked(&mut self, ask: usize) {
        self.log.count("requests");
        self.endings.insert(ask, 0);
    }

    /// The client knows what became of its request (a grant is an end of asking).
    pub(crate) fn ended(&mut self, ask: usize, how: &'static str) {
        self.log.note(|| format!("request {ask}: {how}"));
        self.log.count(how);
        let ended = self.endings.entry(ask).or_default();
        *ended += 1;
        if *ended > 1 {
            self.log.violate("I5 ended twice", format!("request {ask}"));
        }
    }

    /// When all is quiet and all waits are over: I1 and I5.
    pub(crate) fn judge(&mut self, orphans_too: bool) {
        self.possessions.judge(&self.tokens, orphans_too, &mut self.log);
        if let Some((ask, _)) = self.endings.iter().find(|(_, ended)| **ended == 0) {
            self.log.violate("I5 never answered", format!("request {ask}"));
        }
    }

    pub(crate) fn ending_count(&self, ask: usize) -> u32 {
        self.endings.get(&ask).copied().unwrap_or(0)
    }
}
