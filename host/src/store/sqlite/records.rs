//! Ownership records and queues: what happens to them inside a write transaction.

use rusqlite::{Connection, OptionalExtension, params};
use turnstile_core::LockKey;

use super::transaction::{Counters, Fault};

/// What we know about the record before we look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing; if it is ours, it is left over from a write that we believed failed.
    Nothing,
    /// It is ours, with this epoch.
    Owned(i64),
    /// We are in its queue; it may have been handed to us since.
    Queued,
}

/// A claim, as the file sees it.
pub(super) struct Wanted<'a> {
    pub(super) key: &'a LockKey,
    pub(super) lock_delay_ms: i64,
    pub(super) new_epoch: bool,
    pub(super) known: Known,
    /// We know that the record is ours and its quarantine over.
    pub(super) waited_out: bool,
}

/// What became of a claim.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claimed {
    Owned { epoch: u64, lock_delay_ms: i64, quarantine: Quarantine, rivals: Rivals },
    Queued,
}

/// Whether others are queued for a record of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rivals {
    None,
    Waiting,
}

/// Where a record's quarantine counts from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Quarantine {
    /// There is none.
    None,
    /// As known before.
    Unchanged,
    /// From the instant at which we knew that incarnation dead.
    OfDead { name: String, delay_ms: i64 },
    /// From now: taken over in a transaction that we believed failed.
    FromNow { delay_ms: i64 },
}

struct Record {
    incarnation: String,
    epoch: i64,
    lock_delay_ms: i64,
    inherited_ms: i64,
    owner: Owner,
}

enum Owner {
    Alive,
    Dead,
    /// Its row is gone, which no host of ours does to a record's owner.
    Unknown,
}

/// Claims a key: takes it if it is free or its owner dead and nobody waits before us, else queues.
pub(super) fn claim(
    connection: &Connection,
    me: &str,
    counters: &mut Counters,
    wanted: &Wanted<'_>,
) -> Result<Claimed, Fault> {
    let key = wanted.key.as_str();
    counters.promise(wanted.lock_delay_ms);
    match read_record(connection, key)? {
        Some(record) if record.incarnation == me => keep(connection, me, counters, wanted, &record),
        None => match first_before(connection, key, me)? {
            Some(rival) => {
                // Nobody leaves a free record behind a queue, except somebody who edits the file.
                insert(connection, key, &rival.incarnation, counters.next_epoch()?, rival.lock_delay_ms)?;
                leave_queue(connection, key, &rival.incarnation)?;
                enqueue(connection, me, wanted)
            }
            None => {
                let epoch = counters.next_epoch()?;
                insert(connection, key, me, epoch, wanted.lock_delay_ms)?;
                leave_queue(connection, key, me)?;
                owned(connection, me, key, epoch, wanted.lock_delay_ms, Quarantine::None)
            }
        },
        Some(record) => match record.owner {
            Owner::Alive => enqueue(connection, me, wanted),
            Owner::Unknown => {
                adopt_owner(connection, &record.incarnation)?;
                enqueue(connection, me, wanted)
            }
            Owner::Dead if first_before(connection, key, me)?.is_some() => enqueue(connection, me, wanted),
            Owner::Dead => take_over(connection, me, counters, wanted, record),
        },
    }
}

/// The record is ours already.
fn keep(
    connection: &Connection,
    me: &str,
    counters: &mut Counters,
    wanted: &Wanted<'_>,
    record: &Record,
) -> Result<Claimed, Fault> {
    let key = wanted.key.as_str();
    let (fresh, quarantine) = match wanted.known {
        Known::Owned(epoch) if epoch == record.epoch => (wanted.new_epoch, Quarantine::Unchanged),
        // Handed to us: nothing was granted under this epoch yet. Or taken over, by a write that we believed failed.
        Known::Queued => (wanted.new_epoch, Quarantine::FromNow { delay_ms: record.inherited_ms }),
        Known::Nothing | Known::Owned(_) => (true, Quarantine::FromNow { delay_ms: record.inherited_ms }),
    };
    let epoch = if fresh { counters.next_epoch()? } else { record.epoch };
    let lock_delay_ms = record.lock_delay_ms.max(wanted.lock_delay_ms);
    // Or else it would be waited out once more, should this write land unnoticed.
    let inherited_ms = match quarantine {
        Quarantine::Unchanged if wanted.waited_out => 0,
        _ => record.inherited_ms,
    };
    if (epoch, lock_delay_ms, inherited_ms) != (record.epoch, record.lock_delay_ms, record.inherited_ms) {
        connection
            .prepare_cached("UPDATE ownerships SET epoch = ?2, lock_delay_ms = ?3, inherited_ms = ?4 WHERE key = ?1")?
            .execute(params![key, epoch, lock_delay_ms, inherited_ms])?;
    }
    leave_queue(connection, key, me)?;
    owned(connection, me, key, epoch, lock_delay_ms, quarantine)
}

/// The owner is dead and it is our turn.
fn take_over(
    connection: &Connection,
    me: &str,
    counters: &mut Counters,
    wanted: &Wanted<'_>,
    record: Record,
) -> Result<Claimed, Fault> {
    let key = wanted.key.as_str();
    let epoch = counters.next_epoch()?;
    let lock_delay_ms = record.lock_delay_ms.max(wanted.lock_delay_ms);
    connection
        .prepare_cached(
            "UPDATE ownerships SET incarnation = ?3, epoch = ?4, lock_delay_ms = ?5, inherited_ms = ?6,
                since_unix_s = unixepoch() WHERE key = ?1 AND incarnation = ?2 AND epoch = ?7",
        )?
        .execute(params![key, record.incarnation, me, epoch, lock_delay_ms, record.lock_delay_ms, record.epoch])?;
    leave_queue(connection, key, me)?;
    let quarantine = Quarantine::OfDead { name: record.incarnation, delay_ms: record.lock_delay_ms };
    owned(connection, me, key, epoch, lock_delay_ms, quarantine)
}

/// Gives up whatever we have of the key: the record goes to the first live claimant in its queue, or away. A record
/// that we do not know may be in a dead owner's quarantine, which must not get lost: it stays.
pub(super) fn give_up(
    connection: &Connection,
    me: &str,
    counters: &mut Counters,
    key: &str,
    known: Known,
) -> Result<(), Fault> {
    leave_queue(connection, key, me)?;
    let known = matches!(known, Known::Owned(_));
    let ours = connection
        .prepare_cached("SELECT 1 FROM ownerships WHERE key = ?1 AND incarnation = ?2 AND (?3 OR inherited_ms = 0)")?
        .exists(params![key, me, known])?;
    if !ours {
        return Ok(());
    }
    match first_before(connection, key, me)? {
        Some(next) => {
            connection
                .prepare_cached(
                    "UPDATE ownerships SET incarnation = ?2, epoch = ?3, lock_delay_ms = ?4, inherited_ms = 0,
                        since_unix_s = unixepoch() WHERE key = ?1",
                )?
                .execute(params![key, next.incarnation, counters.next_epoch()?, next.lock_delay_ms])?;
            leave_queue(connection, key, &next.incarnation)
        }
        None => {
            connection.prepare_cached("DELETE FROM ownerships WHERE key = ?1")?.execute([key])?;
            Ok(())
        }
    }
}

/// Whether a claim queued by `me` could move on by claiming again: its turn came, or its place was lost.
pub(super) fn is_stuck(connection: &Connection, me: &str, key: &str) -> Result<bool, Fault> {
    let queued = connection
        .prepare_cached("SELECT 1 FROM queue WHERE key = ?1 AND incarnation = ?2")?
        .exists(params![key, me])?;
    Ok(match read_record(connection, key)? {
        Some(record) if record.incarnation == me => true,
        Some(Record { owner: Owner::Alive, .. }) => !queued,
        Some(_) | None => !queued || first_before(connection, key, me)?.is_none(),
    })
}

/// Forgets everything that a dead incarnation has queued, up to a bound; says how much that was.
pub(super) fn clear_queue_of(connection: &Connection, name: &str, count_max: i64) -> Result<usize, Fault> {
    Ok(connection
        .prepare_cached(
            "DELETE FROM queue WHERE place IN (SELECT place FROM queue WHERE incarnation = ?1 ORDER BY place LIMIT ?2)",
        )?
        .execute(params![name, count_max])?)
}

struct InQueue {
    incarnation: String,
    lock_delay_ms: i64,
}

/// The first live claimant that is before `me` (or first at all, if `me` is not queued).
fn first_before(connection: &Connection, key: &str, me: &str) -> Result<Option<InQueue>, Fault> {
    Ok(connection
        .prepare_cached(
            "SELECT q.incarnation, q.lock_delay_ms FROM queue q JOIN incarnations i ON i.name = q.incarnation
             WHERE q.key = ?1 AND i.dead = 0 AND q.incarnation <> ?2 AND q.place <
                coalesce((SELECT place FROM queue WHERE key = ?1 AND incarnation = ?2), 9223372036854775807)
             ORDER BY q.place LIMIT 1",
        )?
        .query_row(params![key, me], |row| Ok(InQueue { incarnation: row.get(0)?, lock_delay_ms: row.get(1)? }))
        .optional()?)
}

fn read_record(connection: &Connection, key: &str) -> Result<Option<Record>, Fault> {
    Ok(connection
        .prepare_cached(
            "SELECT o.incarnation, o.epoch, o.lock_delay_ms, o.inherited_ms, i.dead
             FROM ownerships o LEFT JOIN incarnations i ON i.name = o.incarnation WHERE o.key = ?1",
        )?
        .query_row([key], |row| {
            Ok(Record {
                incarnation: row.get(0)?,
                epoch: row.get(1)?,
                lock_delay_ms: row.get(2)?,
                inherited_ms: row.get(3)?,
                owner: match row.get::<_, Option<i64>>(4)? {
                    Some(0) => Owner::Alive,
                    Some(_) => Owner::Dead,
                    None => Owner::Unknown,
                },
            })
        })
        .optional()?)
}

/// Gives the owner of an orphaned record a row that never beats, so that it is observed for a TTL like any other. The
/// counter is one that the owner, if it lives, takes for none of its own.
fn adopt_owner(connection: &Connection, name: &str) -> Result<(), Fault> {
    connection
        .prepare_cached(
            "INSERT INTO incarnations (name, beat, ttl_ms) SELECT ?1, -1, max(ttl_ms) FROM incarnations WHERE true
             ON CONFLICT (name) DO NOTHING",
        )?
        .execute([name])?;
    Ok(())
}

fn owned(
    connection: &Connection,
    me: &str,
    key: &str,
    epoch: i64,
    lock_delay_ms: i64,
    quarantine: Quarantine,
) -> Result<Claimed, Fault> {
    let waiting = connection
        .prepare_cached("SELECT 1 FROM queue WHERE key = ?1 AND incarnation <> ?2")?
        .exists(params![key, me])?;
    let rivals = if waiting { Rivals::Waiting } else { Rivals::None };
    Ok(Claimed::Owned { epoch: epoch.unsigned_abs(), lock_delay_ms, quarantine, rivals })
}

fn insert(connection: &Connection, key: &str, owner: &str, epoch: i64, lock_delay_ms: i64) -> Result<(), Fault> {
    connection
        .prepare_cached(
            "INSERT INTO ownerships (key, incarnation, epoch, lock_delay_ms, inherited_ms) VALUES (?1, ?2, ?3, ?4, 0)",
        )?
        .execute(params![key, owner, epoch, lock_delay_ms])?;
    Ok(())
}

fn enqueue(connection: &Connection, me: &str, wanted: &Wanted<'_>) -> Result<Claimed, Fault> {
    connection
        .prepare_cached(
            "INSERT INTO queue (key, incarnation, lock_delay_ms) VALUES (?1, ?2, ?3) ON CONFLICT (key, incarnation)
             DO UPDATE SET lock_delay_ms = max(lock_delay_ms, excluded.lock_delay_ms)",
        )?
        .execute(params![wanted.key.as_str(), me, wanted.lock_delay_ms])?;
    Ok(Claimed::Queued)
}

fn leave_queue(connection: &Connection, key: &str, incarnation: &str) -> Result<(), Fault> {
    connection
        .prepare_cached("DELETE FROM queue WHERE key = ?1 AND incarnation = ?2")?
        .execute(params![key, incarnation])?;
    Ok(())
}
