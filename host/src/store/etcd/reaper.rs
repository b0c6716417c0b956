//! Removing what dead hosts left behind and nobody wants any more, slowly: the oldest host goes over all records, a
//! page at a time, and removes those of the dead whose promises and lock delays have passed.
//!
//! A record is seen in a page, and its owner missing in a list of hosts that is read *after* the page: so the owner
//! lived once and is dead now, and what it promised is over a TTL and a lock delay after that list.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, Error, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse};
use turnstile_core::{Instant, LockKey};

use super::layout::{Layout, RecordValue};
use super::link::{PAGE, after, end_of};
use super::txn::{Me, guarded};
use super::worker::{Message, Worker};
use crate::clock;

/// Records removed in one transaction.
const REMOVE_MAX: usize = 64;
/// Between two requests: a hundred thousand records take a minute, and nobody notices.
const COURTESY: Duration = Duration::from_millis(20);
/// A round that had to leave something is followed by another, not sooner than this.
const AGAIN_MIN: Duration = Duration::from_secs(10);

/// When to go round next.
#[derive(Debug, Default)]
pub(super) struct Reaper {
    due: Option<Instant>,
    running: bool,
    /// Somebody died while a round was under way.
    again: bool,
    dead_since: HashMap<String, Instant>,
}

/// What came of a round.
pub(super) struct Reaped {
    dead_since: HashMap<String, Instant>,
    removed: usize,
    /// When the first of the records that had to be left can go.
    next: Option<Instant>,
    outcome: Result<(), String>,
}

impl Reaper {
    /// A host is gone, or may have gone while we did not look.
    pub(super) fn somebody_died(&mut self, now: Instant) {
        if self.running {
            self.again = true;
        } else {
            self.due.get_or_insert(now);
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due.filter(|_| !self.running)
    }

    pub(super) fn ended(&mut self, reaped: Reaped, now: Instant) {
        self.running = false;
        if reaped.removed > 0 {
            tracing::info!(store = "etcd", records = reaped.removed, "removed what dead hosts left behind");
        }
        self.dead_since = reaped.dead_since;
        self.due = match (&reaped.outcome, reaped.next) {
            (Ok(()), None) if !self.again => None,
            (Ok(()), Some(next)) if !self.again => Some(next.max(now + AGAIN_MIN)),
            _ => Some(now + AGAIN_MIN),
        };
        self.again = false;
        if let Err(reason) = reaped.outcome {
            tracing::debug!(store = "etcd", reason, "a round over what dead hosts left behind was given up");
        }
        if self.due.is_none() {
            // Whoever has no records left needs no memory.
            self.dead_since = HashMap::new();
        }
    }
}

impl Worker {
    /// Starts a round if one is due and this is the host that does it.
    pub(super) fn reap(&mut self, now: Instant) {
        let (Some(member), Some(link)) = (self.member(), self.link()) else { return };
        if self.reaper.due().is_none_or(|due| due > now) {
            return;
        }
        if !self.hosts.is_oldest(&member.me.name) {
            // The next death may be that of the oldest.
            self.reaper.due = None;
            return;
        }
        let round = Round {
            client: link.client.clone(),
            layout: Arc::clone(&self.layout),
            me: member.me.clone(),
            meta: member.meta.revision,
            timeout: self.config.request_timeout,
            reaped: Reaped {
                dead_since: std::mem::take(&mut self.reaper.dead_since),
                removed: 0,
                next: None,
                outcome: Ok(()),
            },
        };
        let messages = self.messages.clone();
        (self.reaper.running, self.reaper.due) = (true, None);
        tokio::spawn(async move {
            let name = round.me.name.clone();
            let reaped = round.run().await;
            let _ = messages.send(Message::Reaped { name, reaped });
        });
    }
}

struct Round {
    client: Client,
    layout: Arc<Layout>,
    me: Me,
    meta: i64,
    timeout: Duration,
    reaped: Reaped,
}

/// A record of a page.
struct Found {
    key: LockKey,
    revision: i64,
    value: RecordValue,
}

impl Round {
    async fn run(mut self) -> Reaped {
        self.reaped.outcome = self.pages().await;
        self.reaped
    }

    async fn pages(&mut self) -> Result<(), String> {
        let (mut from, end) = (self.layout.records().into_bytes(), end_of(&self.layout.records()));
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE);
            let mut client = self.client.clone();
            let page = self.within(client.get(from.clone(), Some(options))).await?;
            let last = page.kvs().last().filter(|_| page.more()).map(|kv| after(kv.key()));
            let found = page.kvs().iter().filter_map(|kv| self.found(kv)).collect();
            self.page(found).await?;
            match last {
                Some(next) => from = next,
                None => return Ok(()),
            }
            tokio::time::sleep(COURTESY).await;
        }
    }

    fn found(&self, kv: &KeyValue) -> Option<Found> {
        let key = self.layout.parse_record(kv.key())?;
        let value: RecordValue = serde_json::from_slice(kv.value()).ok()?;
        (value.host != self.me.name).then_some(Found { key, revision: kv.mod_revision(), value })
    }

    async fn page(&mut self, found: Vec<Found>) -> Result<(), String> {
        if found.iter().any(|found| !self.reaped.dead_since.contains_key(&found.value.host)) {
            self.bury(&found).await?;
        }
        let now = clock::now();
        let mut needless = Vec::new();
        for found in found {
            let Some(since) = self.reaped.dead_since.get(&found.value.host) else { continue };
            let promised_ms = found.value.lock_delay_ms.max(found.value.inherited_ms);
            let over = *since + Duration::from_millis(found.value.ttl_ms.saturating_add(promised_ms));
            if over <= now {
                needless.push(found);
            } else {
                self.reaped.next = Some(self.reaped.next.map_or(over, |next| next.min(over)));
            }
        }
        for part in needless.chunks(REMOVE_MAX) {
            self.remove(part).await?;
            tokio::time::sleep(COURTESY).await;
        }
        Ok(())
    }

    /// Owners of these records that are not among the hosts are dead from now on.
    async fn bury(&mut self, found: &[Found]) -> Result<(), String> {
        let mut client = self.client.clone();
        let options = GetOptions::new().with_prefix().with_keys_only();
        let hosts = self.within(client.get(self.layout.hosts(), Some(options))).await?;
        let now = clock::now();
        let alive: HashSet<String> = hosts.kvs().iter().filter_map(|kv| self.layout.parse_host(kv.key())).collect();
        for found in found.iter().filter(|found| !alive.contains(&found.value.host)) {
            self.reaped.dead_since.entry(found.value.host.clone()).or_insert(now);
        }
        Ok(())
    }

    async fn remove(&mut self, part: &[Found]) -> Result<(), String> {
        let operations = part.iter().map(|found| {
            let record = self.layout.record(&found.key);
            let guards = [
                Compare::mod_revision(record.clone(), CompareOp::Equal, found.revision),
                Compare::create_revision(self.layout.host(&found.value.host), CompareOp::Equal, 0),
                Compare::create_revision(self.layout.queue(&found.key), CompareOp::Equal, 0).with_prefix(),
            ];
            TxnOp::txn(Txn::new().when(guards).and_then([TxnOp::delete(record, None)]))
        });
        let txn = guarded(&self.layout, &self.me, self.meta, operations.collect());
        let mut client = self.client.clone();
        let response = self.within(client.txn(txn)).await?;
        if !response.succeeded() {
            return Err("the lease or the epoch base has changed".into());
        }
        let removed = |answer: &TxnOpResponse| matches!(answer, TxnOpResponse::Txn(answer) if answer.succeeded());
        self.reaped.removed += response.op_responses().iter().filter(|answer| removed(answer)).count();
        Ok(())
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
        match tokio::time::timeout(self.timeout, work).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {:?}", self.timeout)),
        }
    }
}
