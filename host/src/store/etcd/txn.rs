//! What is written for one lock key, as an operation of a larger transaction, and what is read back.
//!
//! Every write is guarded by what it was decided on (the record's revision, the queue's head), and when the guard does
//! not hold any more, the same round trip brings what is there now. A transaction as a whole is guarded by our own
//! liveness: what we send can land only while our lease lives.

use std::collections::BTreeMap;

use etcd_client::{
    Compare, CompareOp, GetOptions, GetResponse, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
    TxnResponse,
};
use turnstile_core::{Instant, LockKey};

use super::layout::{Layout, PlaceValue, RecordValue, json};

/// Who we are, in all that we write.
#[derive(Clone, Debug)]
pub(super) struct Me {
    pub(super) name: String,
    pub(super) lease: i64,
    /// Create revision of our key in `hosts/`.
    pub(super) created: i64,
}

/// One write for one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// There is no record: make one.
    Create { record: RecordValue },
    /// The record is ours: replace it, which raises its revision.
    Raise { revision: i64, record: RecordValue },
    /// Another owns the record, or nobody does (revision 0) but others wait: take a place, or keep the one we have.
    Enqueue { revision: i64, place: PlaceValue, wake: Option<String> },
    /// The owner is dead, and it is our turn; what it promised is over at `until`.
    TakeOver { revision: i64, dead: String, turn: Turn, record: RecordValue, until: Instant },
    /// Nobody waits: remove the record.
    Remove { revision: i64 },
    /// Somebody waits: the record goes to the first.
    HandOver { revision: i64, head: Place, record: RecordValue, more: bool },
    /// Leave the queue, and look whether the record was handed to us before.
    Leave,
}

/// Why it is our turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nobody is queued.
    NobodyWaits,
    /// We are the first in the queue. Nobody gets in before us, so this was true when it was read, or we have left.
    First,
}

/// A record as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) value: RecordValue,
    pub(super) revision: i64,
}

/// A place in a queue as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) value: PlaceValue,
    /// Mod revision: a place whose lock delay was raised has another.
    pub(super) revision: i64,
}

/// Who waits for a record of ours, as far as we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rivals {
    None,
    /// Nobody gets in before the first, so it is the first until it leaves. There may be more behind it.
    Known {
        first: Box<Place>,
        more: bool,
    },
    /// Somebody.
    Unknown,
}

impl Rivals {
    pub(super) fn any(&self) -> bool {
        *self != Self::None
    }
}

/// What was read about one key, all at one revision.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Seen {
    pub(super) record: Option<Record>,
    /// The first two places.
    pub(super) queue: Vec<Place>,
    /// Whether we have a place anywhere in it.
    pub(super) queued: bool,
}

impl Seen {
    /// Who waits beside `me`.
    pub(super) fn rivals(&self, me: &str) -> Rivals {
        let mut rivals = self.queue.iter().filter(|place| place.name != me);
        match rivals.next() {
            None => Rivals::None,
            Some(first) => Rivals::Known { first: Box::new(first.clone()), more: rivals.next().is_some() },
        }
    }

    pub(super) fn first(&self) -> Option<&str> {
        self.queue.first().map(|place| place.name.as_str())
    }
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It landed at the revision of the transaction; with what is there now, as far as it was asked for.
    Landed(Seen),
    /// The guard did not hold. This is there.
    Refused(Seen),
}

/// Something under our prefix that we cannot have written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} of {key} is not Turnstile's: {value:?}")]
pub(super) struct Foreign {
    what: &'static str,
    key: LockKey,
    value: String,
}

/// Guards of a whole transaction.
pub(super) fn guarded(layout: &Layout, me: &Me, meta_revision: i64, ops: Vec<TxnOp>) -> Txn {
    Txn::new()
        .when([
            Compare::create_revision(layout.host(&me.name), CompareOp::Equal, me.created),
            Compare::mod_revision(layout.meta(), CompareOp::Equal, meta_revision),
        ])
        .and_then(ops)
        .or_else([
            TxnOp::get(layout.host(&me.name), Some(GetOptions::new().with_keys_only())),
            TxnOp::get(layout.meta(), None),
        ])
}

/// Operations that look at one key.
const LOOKS: usize = 3;

/// Reads what there is about the keys, under the guards that writes have: what is found becomes an epoch. Flat: etcd 3.4
/// takes nested transactions for writes, and writes them to disk.
pub(super) fn read(layout: &Layout, me: &Me, meta_revision: i64, keys: &[LockKey]) -> Txn {
    guarded(layout, me, meta_revision, keys.iter().flat_map(|key| look(layout, me, key)).collect())
}

/// Keys in one [`read`]: etcd takes 128 operations unless told otherwise.
pub(super) const READ_MAX: usize = 40;

/// Keys in one transaction that writes. etcd takes 128 operations, those of a nested transaction (up to six here) among
/// them, and each key may wake another host.
pub(super) const WRITE_MAX: usize = 60;
/// Carries out the writes, and wakes whom they are for.
pub(super) fn write(layout: &Layout, me: &Me, meta_revision: i64, writes: &[(LockKey, Write)]) -> Txn {
    let mut wakes: BTreeMap<&str, Vec<&(LockKey, Write)>> = BTreeMap::new();
    for write in writes {
        if let Some(name) = write.1.wakes() {
            wakes.entry(name).or_default().push(write);
        }
    }
    // A wake key can be written once in a transaction.
    let within = |writes: &[&(LockKey, Write)]| matches!(writes, [(_, Write::HandOver { .. })]);
    let telling = |write: &Write| match write.wakes().and_then(|name| wakes.get(name)) {
        Some(writes) if within(writes) => Telling::Within { meta_revision },
        Some(_) | None => Telling::Apart,
    };
    let operations = writes.iter().map(|(key, write)| write.operation(layout, me, key, telling(write)));
    let apart = wakes.iter().filter(|(_, writes)| !within(writes));
    let apart = apart.map(|(name, writes)| wake(layout, me, name, writes.iter().map(|(key, _)| key)));
    guarded(layout, me, meta_revision, operations.chain(apart).collect())
}

/// Wakes these hosts to look at these keys.
pub(super) fn nudge(layout: &Layout, me: &Me, meta_revision: i64, nudges: &[(String, LockKey)]) -> Txn {
    let mut wakes: BTreeMap<&str, Vec<&LockKey>> = BTreeMap::new();
    for (name, key) in nudges {
        wakes.entry(name).or_default().push(key);
    }
    let operations = wakes.into_iter().map(|(name, keys)| wake(layout, me, name, keys.into_iter()));
    guarded(layout, me, meta_revision, operations.collect())
}

/// Wakes the host, if it lives.
fn wake<'k>(layout: &Layout, me: &Me, name: &str, keys: impl Iterator<Item = &'k LockKey>) -> TxnOp {
    let keys: Vec<&str> = keys.map(LockKey::as_str).collect();
    let put = put_wake(layout, me, name, keys.join(" "));
    let lives = Compare::create_revision(layout.host(name), CompareOp::Greater, 0);
    TxnOp::txn(Txn::new().when([lives]).and_then([put]))
}

fn put_wake(layout: &Layout, me: &Me, name: &str, text: String) -> TxnOp {
    TxnOp::put(layout.wake(name), text, Some(PutOptions::new().with_lease(me.lease)))
}

/// What a host is told that is woken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// Look at these keys.
    Look(Vec<LockKey>),
    /// This record was handed over to it, in the very write that tells so.
    Handed(Handed),
}

/// A record that was handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Handed {
    pub(super) key: LockKey,
    pub(super) lock_delay_ms: u64,
    /// The `meta` under which it was handed over: whoever knows another would make another epoch of the revision.
    pub(super) meta_revision: i64,
    /// Whether others wait behind.
    pub(super) more: bool,
    /// The record's.
    pub(super) revision: i64,
}

impl Handed {
    /// Told apart from keys to look at by a space in front.
    fn text(key: &LockKey, lock_delay_ms: u64, meta_revision: i64, more: bool) -> String {
        format!(" {key} {lock_delay_ms} {meta_revision} {more}")
    }
}

impl Call {
    /// Reads a write of a wake key that was made at this revision.
    pub(super) fn parse(text: &str, revision: i64) -> Self {
        let words: Vec<&str> = text.split(' ').collect();
        if let ["", key, lock_delay_ms, meta_revision, more] = words[..]
            && let (Ok(key), Ok(lock_delay_ms), Ok(meta_revision), Ok(more)) =
                (LockKey::parse(key), lock_delay_ms.parse(), meta_revision.parse(), more.parse())
        {
            return Self::Handed(Handed { key, lock_delay_ms, meta_revision, more, revision });
        }
        Self::Look(words.into_iter().filter_map(|key| LockKey::parse(key).ok()).collect())
    }
}

/// How the one that a write wakes is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Telling {
    /// By another operation of the transaction, which wakes it for all its keys, whatever becomes of this write.
    Apart,
    /// By this very write, if it lands. For one write a transaction and host only: a key is written once in each.
    Within { meta_revision: i64 },
}

impl Write {
    /// Whom to wake when this is written.
    fn wakes(&self) -> Option<&str> {
        match self {
            Self::Enqueue { wake, .. } => wake.as_deref(),
            Self::HandOver { head, .. } => Some(&head.name),
            Self::Create { .. } | Self::Raise { .. } | Self::TakeOver { .. } | Self::Remove { .. } | Self::Leave => {
                None
            }
        }
    }

    /// Whether this would do the same as `other`, so that nothing new is to be expected of it.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::TakeOver { revision, dead, turn, .. },
                Self::TakeOver { revision: revision_2, dead: dead_2, turn: turn_2, .. },
            ) => (revision, dead, turn) == (revision_2, dead_2, turn_2),
            _ => self == other,
        }
    }

    fn operation(&self, layout: &Layout, me: &Me, key: &LockKey, telling: Telling) -> TxnOp {
        let record_is = |revision| Compare::mod_revision(layout.record(key), CompareOp::Equal, revision);
        let nobody_waits = || Compare::create_revision(layout.queue(key), CompareOp::Equal, 0).with_prefix();
        let put_record = |record: &RecordValue| TxnOp::put(layout.record(key), json(record), None);
        let leave = |name: &str| TxnOp::delete(layout.place(key, name), None);
        let (guards, mut ops) = match self {
            Self::Create { record } => (vec![record_is(0)], vec![put_record(record), leave(&me.name)]),
            Self::Raise { revision, record } => (vec![record_is(*revision)], vec![put_record(record), leave(&me.name)]),
            Self::Enqueue { revision, place, .. } => {
                let options = PutOptions::new().with_lease(me.lease);
                let put = TxnOp::put(layout.place(key, &me.name), json(place), Some(options));
                (vec![record_is(*revision)], vec![put])
            }
            Self::TakeOver { revision, dead, turn, record, .. } => {
                let is_dead = Compare::create_revision(layout.host(dead), CompareOp::Equal, 0);
                let is_our_turn = match turn {
                    Turn::NobodyWaits => nobody_waits(),
                    Turn::First => Compare::create_revision(layout.place(key, &me.name), CompareOp::Greater, 0),
                };
                (vec![record_is(*revision), is_dead, is_our_turn], vec![put_record(record), leave(&me.name)])
            }
            Self::Remove { revision } => {
                (vec![record_is(*revision), nobody_waits()], vec![TxnOp::delete(layout.record(key), None)])
            }
            Self::HandOver { revision, head, record, more } => {
                let waits = Compare::mod_revision(layout.place(key, &head.name), CompareOp::Equal, head.revision);
                let mut ops = vec![put_record(record), leave(&head.name)];
                if let Telling::Within { meta_revision } = telling {
                    let text = Handed::text(key, record.lock_delay_ms, meta_revision, *more);
                    ops.push(put_wake(layout, me, &head.name, text));
                }
                (vec![record_is(*revision), waits], ops)
            }
            Self::Leave => (Vec::new(), vec![leave(&me.name)]),
        };
        ops.extend(look(layout, me, key));
        TxnOp::txn(Txn::new().when(guards).and_then(ops).or_else(look(layout, me, key)))
    }
}

fn look(layout: &Layout, me: &Me, key: &LockKey) -> [TxnOp; LOOKS] {
    let first_two = GetOptions::new().with_prefix().with_sort(SortTarget::Create, SortOrder::Ascend).with_limit(2);
    [
        TxnOp::get(layout.record(key), None),
        TxnOp::get(layout.queue(key), Some(first_two)),
        TxnOp::get(layout.place(key, &me.name), Some(GetOptions::new().with_count_only())),
    ]
}

/// Reads the answer to one of [`Write::operation`].
pub(super) fn written(layout: &Layout, key: &LockKey, response: &TxnResponse) -> Result<Written, Foreign> {
    let looks: Vec<GetResponse> = gets(response).collect();
    let seen = seen(layout, key, &looks)?;
    Ok(if response.succeeded() { Written::Landed(seen) } else { Written::Refused(seen) })
}

/// Reads the answer to [`read`], for its keys in their order.
pub(super) fn all_seen(layout: &Layout, keys: &[LockKey], response: &TxnResponse) -> Vec<Result<Seen, Foreign>> {
    let gets: Vec<GetResponse> = gets(response).collect();
    keys.iter().zip(gets.chunks(LOOKS)).map(|(key, looks)| seen(layout, key, looks)).collect()
}

fn gets(response: &TxnResponse) -> impl Iterator<Item = GetResponse> {
    response.op_responses().into_iter().filter_map(|response| match response {
        TxnOpResponse::Get(get) => Some(get),
        _ => None,
    })
}

fn seen(layout: &Layout, key: &LockKey, looks: &[GetResponse]) -> Result<Seen, Foreign> {
    let [record, queue, place] = looks else { return Err(foreign("an answer about", key, b"too short")) };
    Ok(Seen {
        record: record.kvs().first().map(|kv| parse_record(key, kv)).transpose()?,
        queue: parse_queue(layout, key, queue)?,
        queued: place.count() > 0,
    })
}

fn parse_record(key: &LockKey, kv: &etcd_client::KeyValue) -> Result<Record, Foreign> {
    let value = serde_json::from_slice(kv.value()).map_err(|_| foreign("the record", key, kv.value()))?;
    Ok(Record { value, revision: kv.mod_revision() })
}

fn parse_queue(layout: &Layout, key: &LockKey, get: &GetResponse) -> Result<Vec<Place>, Foreign> {
    get.kvs()
        .iter()
        .map(|kv| {
            let what = || foreign("a place in the queue", key, kv.value());
            let (_, name) = layout.parse_place(kv.key()).ok_or_else(what)?;
            let value = serde_json::from_slice(kv.value()).map_err(|_| what())?;
            Ok(Place { name, value, revision: kv.mod_revision() })
        })
        .collect()
}

fn foreign(what: &'static str, key: &LockKey, value: &[u8]) -> Foreign {
    let mut value = String::from_utf8_lossy(value).into_owned();
    value.truncate(value.char_indices().nth(100).map_or(value.len(), |(at, _)| at));
    Foreign { what, key: key.clone(), value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_as_they_were_written() {
        let key = LockKey::parse("t/account:1").unwrap();
        let handed = Handed { key: key.clone(), lock_delay_ms: 1_500, meta_revision: 3, more: true, revision: 77 };
        assert_eq!(Call::parse(&Handed::text(&key, 1_500, 3, true), 77), Call::Handed(handed));
        assert_eq!(Call::parse("t/account:1 t/2", 77), Call::Look(vec![key, LockKey::parse("t/2").unwrap()]));
        assert_eq!(Call::parse("", 77), Call::Look(Vec::new()));
    }
}
