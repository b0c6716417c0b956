//! Comparing our records with the table, a page after each beat, whatever their number: finds records that somebody took
//! from us, and those left over from writes that we believed failed.
//!
//! The pages may be old (they are read from one member's own copy), so a difference is only a reason to look.

use etcd_client::{GetOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};
use turnstile_core::LockKey;

use super::decide::Want;
use super::layout::RecordValue;
use super::link::{Fault, PAGE, after, end_of};
use super::table::Entry;
use super::worker::{What, Worker};

/// Keys that are looked at after one page.
const LOOKS_MAX: usize = 256;

/// How far the sweep has come.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    pass: u32,
    from: Option<Vec<u8>>,
    under_way: bool,
}

impl Sweep {
    pub(super) fn pass(&self) -> u32 {
        self.pass
    }

    /// The page did not come.
    pub(super) fn give_up(&mut self) {
        self.under_way = false;
    }
}

impl Worker {
    /// Asks for the next page.
    pub(super) fn sweep(&mut self) {
        if self.sweep.under_way || self.link().is_none() || self.member().is_none() {
            return;
        }
        let records = self.layout.records();
        let from = self.sweep.from.clone().unwrap_or_else(|| records.clone().into_bytes());
        let options = GetOptions::new().with_range(end_of(&records)).with_limit(PAGE).with_serializable();
        self.sweep.under_way = true;
        self.send(Txn::new().and_then([TxnOp::get(from, Some(options))]), What::Sweep);
    }

    pub(super) fn swept(&mut self, response: Result<TxnResponse, Fault>) -> Result<(), Fault> {
        self.sweep.under_way = false;
        let Some(TxnOpResponse::Get(page)) = response?.op_responses().into_iter().next() else { return Ok(()) };
        let Some(me) = self.member().map(|member| member.me.name.clone()) else { return Ok(()) };
        for kv in page.kvs() {
            if let Some(key) = self.layout.parse_record(kv.key())
                && let Ok(record) = serde_json::from_slice::<RecordValue>(kv.value())
            {
                self.compare(key, record.host == me, kv.mod_revision());
            }
        }
        match page.kvs().last() {
            Some(last) if page.more() => self.sweep.from = Some(after(last.key())),
            _ => self.end_pass(),
        }
        Ok(())
    }

    fn compare(&mut self, key: LockKey, ours: bool, revision: i64) {
        if self.jobs.has(&key) {
            // Whatever there is to know comes with its answer.
            return self.table.swept(&key, self.sweep.pass);
        }
        match self.table.get(&key) {
            Some(Entry::Owned(owned)) if revision > owned.revision => self.start(key, Want::Look),
            Some(Entry::Owned(_)) => self.table.swept(&key, self.sweep.pass),
            Some(Entry::Queued(_)) if ours => self.start(key, Want::Look),
            Some(Entry::Unsure) | None if ours => self.give_back(key),
            Some(_) | None => {}
        }
    }

    /// What was ours before the pass began and did not show up in it, may have been removed.
    fn end_pass(&mut self) {
        for key in self.table.unswept(self.sweep.pass, LOOKS_MAX) {
            self.table.swept(&key, self.sweep.pass);
            self.start(key, Want::Look);
        }
        self.sweep.from = None;
        self.sweep.pass = self.sweep.pass.wrapping_add(1);
    }
}
