//! What the store does by itself between operations: noticing, judging, sweeping, cleaning up, and leaving.
//!
//! Everything is done in bounded pieces, so that no beat waits for it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use rusqlite::{Connection, params};
use turnstile_core::{Instant, LockKey};

use super::liveness::{Lease, mark_dead};
use super::notice::{self, OurRecord, Rest};
use super::records::{self, Known, Rivals};
use super::table::{Entry, Owned, Table, Told};
use super::transaction::Fault;
use super::worker::{Phase, Worker};
use crate::clock;
use crate::store::{Event, Operation};

/// Rows per piece.
const PIECE: usize = 256;
const PIECE_ROWS: i64 = 256;
/// Dead incarnations that are cleaned up after one beat.
const DEAD_MAX: usize = 4;

/// How far the rounds have come.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// Records of ours up to this epoch were compared with the table.
    swept: u64,
    /// Claims of ours in queues were looked at up to this key.
    rechecked: Option<LockKey>,
    /// Claims in queues to look at now.
    recheck: VecDeque<LockKey>,
    /// Records of the dead up to this epoch were looked at.
    cleaned: HashMap<String, u64>,
    /// The dead up to this name had their turn.
    cleaned_name: Option<String>,
    /// While leaving: records of ours up to this epoch were given up.
    left_behind: u64,
}

impl Worker {
    /// Notices what is new, judges who is silent, and moves queued claims on.
    pub(super) fn look_around(&mut self) {
        let now = clock::now();
        let poll_due = self.polls().is_some() && now >= self.next_poll;
        if self.data_version.is_none() || poll_due {
            self.next_poll = now + self.polls().unwrap_or_else(|| Lease::beat_interval(self.config.lease_ttl));
            self.notice();
        }
        self.judge();
        self.recheck();
    }

    fn notice(&mut self) {
        let Self { phase: Phase::Member { database, lease }, cursor, data_version, .. } = self else { return };
        // Read first: what is committed after it shows as another change.
        let found = database.data_version().and_then(|version| {
            if *data_version == Some(version) {
                return Ok(None);
            }
            let found = database.read(|connection, epoch| {
                lease.check(connection)?;
                notice::look(connection, &lease.name, *cursor, epoch)
            })?;
            *data_version = Some(version).filter(|_| found.rest == Rest::Nothing);
            Ok(Some((found, lease.name.clone())))
        });
        match found {
            Ok(None) => {}
            Ok(Some((found, me))) => {
                self.cursor = found.cursor;
                if self.observer.look(&found.incarnations, &me, clock::now()) {
                    self.recheck_all();
                }
                for record in found.records {
                    self.meet(record);
                }
                for key in found.wanted {
                    if self.table.contend(&key) {
                        self.report(Event::Contended { key });
                    }
                }
            }
            Err(fault) => self.handle(&fault),
        }
    }

    /// Compares a record of ours with what we know.
    fn meet(&mut self, record: OurRecord) {
        let OurRecord { key, epoch, lock_delay_ms, inherited_ms, wanted } = record;
        let quarantined_until = match inherited_ms {
            0 => Instant::default(),
            inherited_ms => clock::now() + Duration::from_millis(inherited_ms.unsigned_abs()),
        };
        let lock_delay = Duration::from_millis(lock_delay_ms.unsigned_abs());
        let owned = |told| Owned { epoch, lock_delay, quarantined_until, claim: None, told };
        match self.table.get(&key).cloned() {
            Some(Entry::Queued(queued)) => {
                let rivals = if wanted { Rivals::Waiting } else { Rivals::None };
                self.gained(key, queued.claim, rivals, owned(Told::Gained));
            }
            None => {
                tracing::warn!(store = "sqlite", key = key.as_str(), epoch, "found a record of ours that nobody wants");
                self.table.set(key, Entry::Owned(owned(Told::GivenUp)));
            }
            Some(Entry::Owned(known)) if known.epoch > epoch => {
                tracing::error!(store = "sqlite", key = key.as_str(), epoch, "the epoch of a record went back");
                self.table.set(key.clone(), Entry::Owned(Owned { epoch, told: Told::GivenUp, ..known }));
                self.report(Event::Lost { key });
            }
            // Raised by a write that we believed failed.
            Some(Entry::Owned(known)) if known.epoch < epoch => {
                self.table.set(key, Entry::Owned(Owned { epoch, ..known }));
            }
            Some(Entry::Owned(_)) => {
                if wanted && self.table.contend(&key) {
                    self.report(Event::Contended { key });
                }
            }
        }
    }

    /// Marks those dead whose counter stood still.
    fn judge(&mut self) {
        let patience = self.patience();
        for suspect in self.observer.suspects(clock::now()) {
            let Phase::Member { database, lease } = &mut self.phase else { return };
            match database.write(patience, Some(lease), |connection, _| mark_dead(connection, &suspect)) {
                Ok(marked) => {
                    self.committed();
                    // Whoever was quicker, or has beaten after all: the next look tells.
                    self.data_version = None;
                    if marked {
                        tracing::warn!(store = "sqlite", incarnation = suspect.name, "marked dead: silent for its TTL");
                        self.observer.dead_since(&suspect.name, clock::now());
                        self.recheck_all();
                    }
                }
                Err(fault) => return self.handle(&fault),
            }
        }
    }

    /// Puts every queued claim on the list.
    fn recheck_all(&mut self) {
        self.upkeep.recheck = self.table.queued_after(None, usize::MAX).into();
    }

    /// Looks whether the turn of some queued claims has come, and if so claims again.
    fn recheck(&mut self) {
        let count = self.upkeep.recheck.len().min(PIECE);
        let keys: Vec<LockKey> = self.upkeep.recheck.drain(..count).collect();
        if keys.is_empty() {
            return;
        }
        let Phase::Member { database, lease } = &mut self.phase else { return };
        let stuck = database.read(|connection, _| {
            let mut stuck = Vec::new();
            for key in keys {
                if records::is_stuck(connection, &lease.name, key.as_str())? {
                    stuck.push(key);
                }
            }
            Ok(stuck)
        });
        match stuck {
            Ok(stuck) => {
                for key in stuck {
                    if let Some(Entry::Queued(queued)) = self.table.get(&key) {
                        let (claim, lock_delay) = (queued.claim, queued.lock_delay);
                        self.pending.push_front(Operation::Claim { key, claim, lock_delay, new_epoch: false });
                    }
                }
            }
            Err(fault) => self.handle(&fault),
        }
        // The rest of the list without waiting for a poll.
        if !self.upkeep.recheck.is_empty() {
            self.next_poll = clock::now();
        }
    }

    /// After each beat: a piece of every round.
    pub(super) fn upkeep(&mut self) {
        let after = self.upkeep.rechecked.take();
        let keys = self.table.queued_after(after.as_ref(), PIECE);
        self.upkeep.rechecked = keys.last().filter(|_| keys.len() == PIECE).cloned();
        self.upkeep.recheck.extend(keys);
        if let Err(fault) = self.sweep().and_then(|()| self.clean_up()) {
            self.handle(&fault);
        }
    }

    /// Compares a piece of our records with the table: finds records left over from writes that we believed failed, and
    /// misses those that somebody took from us.
    fn sweep(&mut self) -> Result<(), Fault> {
        let Self { phase: Phase::Member { database, lease }, table, upkeep, .. } = self else { return Ok(()) };
        let after = upkeep.swept;
        let (found, lost) = database.read(|connection, _| {
            let (found, last) = notice::our_records(connection, &lease.name, after, PIECE_ROWS)?;
            upkeep.swept = last.unwrap_or(0);
            let mut lost = Vec::new();
            // A stretch with few records in the file may have many in the table: the rest next time round.
            for (epoch, key) in table.owned_between(after, last.unwrap_or(u64::MAX)).take(PIECE * 2) {
                let there = found.binary_search_by_key(&epoch, |record| record.epoch).is_ok();
                if !there && !notice::is_ours(connection, &lease.name, key)? {
                    lost.push(key.clone());
                }
            }
            Ok((found, lost))
        })?;
        for key in lost {
            tracing::error!(store = "sqlite", key = key.as_str(), "a record of ours was taken from us");
            let told = matches!(self.table.remove(&key), Some(Entry::Owned(owned)) if owned.told != Told::GivenUp);
            if told {
                self.report(Event::Lost { key });
            }
        }
        for record in found {
            self.meet(record);
        }
        Ok(())
    }

    /// Removes what dead incarnations left behind and nobody needs any more: places in queues, records whose lock delay
    /// has passed, and at last the row. A frozen host that wakes after that finds no row, which is as good as a mark.
    fn clean_up(&mut self) -> Result<(), Fault> {
        let (patience, now) = (self.patience(), clock::now());
        for (name, since) in self.next_dead() {
            let Self { phase: Phase::Member { database, lease }, upkeep, .. } = self else { return Ok(()) };
            let after = upkeep.cleaned.get(&name).copied().unwrap_or(0);
            let elapsed_ms = i64::try_from(now.saturating_since(since).as_millis()).unwrap_or(i64::MAX);
            let (records, last) =
                database.read(|connection, _| notice::our_records(connection, &name, after, PIECE_ROWS))?;
            let needless: Vec<_> =
                records.iter().filter(|record| !record.wanted && record.lock_delay_ms < elapsed_ms).collect();
            match last {
                Some(epoch) => upkeep.cleaned.insert(name.clone(), epoch),
                None => upkeep.cleaned.remove(&name),
            };
            let queued = database.read(|connection, _| exists(connection, "queue", &name))?;
            if needless.is_empty() && !queued && !(records.is_empty() && after == 0) {
                continue;
            }
            database.write(patience, Some(lease), |connection, _| {
                records::clear_queue_of(connection, &name, PIECE_ROWS)?;
                for record in &needless {
                    remove_record(connection, &name, record)?;
                }
                remove_row_if_done(connection, &name)
            })?;
            self.committed();
        }
        Ok(())
    }

    /// Those of the dead whose turn it is, in the order of their names.
    fn next_dead(&mut self) -> Vec<(String, Instant)> {
        let mut dead: Vec<_> = self.observer.dead().map(|(name, since)| (name.clone(), since)).collect();
        dead.sort_unstable();
        let after = self.upkeep.cleaned_name.take();
        let first = dead.partition_point(|(name, _)| after.as_ref().is_some_and(|after| name <= after));
        dead.rotate_left(first);
        dead.truncate(DEAD_MAX);
        self.upkeep.cleaned_name = dead.last().map(|(name, _)| name.clone());
        dead
    }

    /// Whether a yield has to wait: the record is in a dead predecessor's quarantine, which must not be forgotten with
    /// it. If so, the table remembers to give it up afterwards.
    pub(super) fn keep_for_quarantine(&mut self, key: &LockKey, now: Instant) -> bool {
        match self.table.get(key) {
            Some(Entry::Owned(owned)) if owned.quarantined_until > now => {
                let owned = Owned { told: Told::GivenUp, ..owned.clone() };
                self.table.set(key.clone(), Entry::Owned(owned));
                true
            }
            _ => false,
        }
    }

    /// Gives up records whose quarantine has passed and which nobody here wants.
    pub(super) fn give_up_due(&mut self, now: Instant) {
        while let Some(key) = self.table.pop_given_up(now) {
            self.pending.push_front(Operation::Yield { key });
        }
    }

    /// A piece of giving up everything; the operation stays in front until all is done.
    pub(super) fn end_lease(&mut self) {
        let (patience, now) = (self.patience(), clock::now());
        let Self { phase: Phase::Member { database, lease }, table, upkeep, .. } = self else { return };
        let (me, after) = (lease.name.as_str(), upkeep.left_behind);
        let done = database.write(patience, Some(lease), |connection, counters| {
            let (records, last) = notice::our_records(connection, me, after, PIECE_ROWS)?;
            for record in records.iter().filter(|record| !in_quarantine(table, record, now)) {
                let known = Known::Owned(i64::try_from(record.epoch).unwrap_or(i64::MAX));
                records::give_up(connection, me, counters, record.key.as_str(), known)?;
            }
            if let Some(epoch) = last {
                return Ok(Some(epoch));
            }
            if records::clear_queue_of(connection, me, PIECE_ROWS)? == PIECE {
                return Ok(Some(after));
            }
            // What is in quarantine stays, under a dead owner: the next one waits it out.
            connection.prepare_cached("UPDATE incarnations SET dead = 1 WHERE name = ?1")?.execute([me])?;
            remove_row_if_done(connection, me)?;
            Ok(None)
        });
        match done {
            Ok(Some(epoch)) => {
                self.upkeep.left_behind = epoch;
                self.committed();
            }
            Ok(None) => {
                tracing::info!(store = "sqlite", incarnation = me, "ended the lease");
                self.committed();
                self.pending.ended();
                self.phase = Phase::Left;
                self.table = Table::default();
                self.report(Event::LeaseEnded);
            }
            Err(fault) => {
                self.next_batch = now + self.config.lease_ttl / 100;
                self.handle(&fault);
            }
        }
    }
}

fn in_quarantine(table: &Table, record: &OurRecord, now: Instant) -> bool {
    match table.get(&record.key) {
        Some(Entry::Owned(owned)) => owned.quarantined_until > now,
        Some(Entry::Queued(_)) | None => record.inherited_ms > 0,
    }
}

fn remove_record(connection: &Connection, owner: &str, record: &OurRecord) -> Result<(), Fault> {
    connection
        .prepare_cached(
            "DELETE FROM ownerships WHERE key = ?1 AND incarnation = ?2 AND epoch = ?3
             AND NOT EXISTS (SELECT 1 FROM queue q WHERE q.key = ?1)",
        )?
        .execute(params![record.key.as_str(), owner, i64::try_from(record.epoch).unwrap_or(i64::MAX)])?;
    Ok(())
}

fn remove_row_if_done(connection: &Connection, name: &str) -> Result<(), Fault> {
    if !exists(connection, "ownerships", name)? && !exists(connection, "queue", name)? {
        connection.prepare_cached("DELETE FROM incarnations WHERE name = ?1 AND dead = 1")?.execute([name])?;
    }
    Ok(())
}

fn exists(connection: &Connection, table: &'static str, incarnation: &str) -> Result<bool, Fault> {
    let sql = match table {
        "queue" => "SELECT 1 FROM queue WHERE incarnation = ?1",
        _ => "SELECT 1 FROM ownerships WHERE incarnation = ?1",
    };
    Ok(connection.prepare_cached(sql)?.exists([incarnation])?)
}
