//! Noticing what other hosts wrote for us, by reading only what is new since the last look.
//!
//! Epochs and places in queues are given out in commit order, so "new" is a range of an index: records of ours with a
//! higher epoch than we have seen, and queue entries behind the last place that we have seen.

use rusqlite::{Connection, params};
use turnstile_core::LockKey;

use super::liveness::{Row, read_rows};
use super::transaction::Fault;

/// The most rows of one kind that a look takes in, so that beats are not kept waiting.
const ROWS_MAX: i64 = 512;

/// How far we have looked.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    epoch: u64,
    place: i64,
}

/// What a look found.
pub(super) struct Found {
    pub(super) incarnations: Vec<Row>,
    /// Records of ours, in the order of their epochs.
    pub(super) records: Vec<OurRecord>,
    /// Records of ours that somebody queued for.
    pub(super) wanted: Vec<LockKey>,
    /// Where the next look starts.
    pub(super) cursor: Cursor,
    pub(super) rest: Rest,
}

/// Whether there is more to be read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    Nothing,
    More,
}

/// A record of ours as it stands in the file.
pub(super) struct OurRecord {
    pub(super) key: LockKey,
    pub(super) epoch: u64,
    pub(super) lock_delay_ms: i64,
    pub(super) inherited_ms: i64,
    pub(super) wanted: bool,
}

impl Cursor {
    /// For a new incarnation: it owns nothing of what is there.
    pub(super) fn at_end(connection: &Connection, epoch: u64) -> Result<Self, Fault> {
        let place =
            connection.prepare_cached("SELECT coalesce(max(place), 0) FROM queue")?.query_row([], |row| row.get(0))?;
        Ok(Self { epoch, place })
    }
}

/// Looks for news since `cursor`; `epoch` is the counter of this snapshot.
pub(super) fn look(connection: &Connection, me: &str, cursor: Cursor, epoch: u64) -> Result<Found, Fault> {
    let incarnations = read_rows(connection)?;
    let (records, last_epoch) = our_records(connection, me, cursor.epoch, ROWS_MAX)?;
    let mut statement = connection.prepare_cached(
        "SELECT q.place, q.key, q.incarnation <> ?1 AND o.incarnation IS ?1 FROM queue q
         LEFT JOIN ownerships o ON o.key = q.key WHERE q.place > ?2 ORDER BY q.place LIMIT ?3",
    )?;
    let mut rows = statement.query(params![me, cursor.place, ROWS_MAX])?;
    let (mut wanted, mut place, mut count) = (Vec::new(), cursor.place, 0);
    while let Some(row) = rows.next()? {
        (place, count) = (row.get(0)?, count + 1);
        if row.get(2)? {
            wanted.push(parse_key(&row.get::<_, String>(1)?)?);
        }
    }
    let rest = if last_epoch.is_some() || count == ROWS_MAX { Rest::More } else { Rest::Nothing };
    let cursor = Cursor { epoch: last_epoch.unwrap_or(epoch), place };
    Ok(Found { incarnations, records, wanted, cursor, rest })
}

/// Up to `count_max` records of ours above an epoch, and the last epoch read if there may be more.
pub(super) fn our_records(
    connection: &Connection,
    me: &str,
    after: u64,
    count_max: i64,
) -> Result<(Vec<OurRecord>, Option<u64>), Fault> {
    let mut statement = connection.prepare_cached(
        "SELECT key, epoch, lock_delay_ms, inherited_ms,
            EXISTS (SELECT 1 FROM queue q WHERE q.key = o.key AND q.incarnation <> ?1)
         FROM ownerships o WHERE incarnation = ?1 AND epoch > ?2 ORDER BY epoch LIMIT ?3",
    )?;
    let mut rows = statement.query(params![me, i64::try_from(after).unwrap_or(i64::MAX), count_max])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(OurRecord {
            key: parse_key(&row.get::<_, String>(0)?)?,
            epoch: row.get::<_, i64>(1)?.unsigned_abs(),
            lock_delay_ms: row.get(2)?,
            inherited_ms: row.get(3)?,
            wanted: row.get(4)?,
        });
    }
    let full = i64::try_from(records.len()).is_ok_and(|count| count >= count_max);
    let last = records.last().filter(|_| full).map(|record| record.epoch);
    Ok((records, last))
}

/// Whether the record of this key is ours.
pub(super) fn is_ours(connection: &Connection, me: &str, key: &LockKey) -> Result<bool, Fault> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM ownerships WHERE key = ?1 AND incarnation = ?2")?
        .exists(params![key.as_str(), me])?)
}

fn parse_key(text: &str) -> Result<LockKey, Fault> {
    LockKey::parse(text).map_err(|error| Fault::Broken(format!("a record has the key {text:?}: {error}")))
}
