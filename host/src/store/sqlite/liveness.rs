//! Who is alive: our own beats, and what we may conclude about others.
//!
//! The rule. A beat raises the counter in the incarnation's row, and extends its lease from an instant read before the
//! transaction began. If we read the counter at an instant of our clock, and a full TTL later it is *still* unchanged
//! inside the transaction that marks the row dead, then no beat was committed in between, so every promise under that
//! lease has passed; and none can follow, since a beat succeeds only while the row is not marked. This holds whatever
//! happened to *us* in between: a look that we missed, even because we were frozen, can hide no beat from that last
//! comparison. So a gap in our looks is never unsafe.
//!
//! It would be unkind, though. After a suspend of the whole machine, or while the file was locked for everybody, the
//! others had no chance to beat either, and whoever wakes first would declare all others dead. So looks count only
//! while our own beats land: after a gap in those, nobody is judged for another two beats.

use std::collections::HashMap;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};
use turnstile_core::Instant;

use super::transaction::Fault;

/// Beats per TTL: four may fail in a row.
const BEATS_PER_TTL: u32 = 5;

/// Our own liveness.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) name: String,
    ttl: Duration,
    /// The last beat known to have landed.
    landed: i64,
    /// The last beat that was tried.
    tried: i64,
}

impl Lease {
    /// Makes a row for a new incarnation of this name; call it inside a write transaction.
    pub(super) fn register(connection: &Connection, name: String, ttl: Duration) -> Result<Self, Fault> {
        connection
            .prepare_cached("INSERT INTO incarnations (name, beat, ttl_ms) VALUES (?1, 1, ?2)")?
            .execute(params![name, millis_up(ttl)])?;
        Ok(Self { name, ttl, landed: 1, tried: 1 })
    }

    /// How often to beat.
    pub(super) fn beat_interval(ttl: Duration) -> Duration {
        ttl / BEATS_PER_TTL
    }

    /// Fails with [`Fault::LeaseGone`] unless our row is there and not marked dead. The counter must be one that we
    /// wrote: a row of our name made up by another counts as gone. An older one of ours, which nobody but us wrote, shows
    /// that the file was restored: [`Fault::Broken`].
    pub(super) fn check(&self, connection: &Connection) -> Result<(), Fault> {
        let row: Option<(i64, i64)> = connection
            .prepare_cached("SELECT beat, dead FROM incarnations WHERE name = ?1")?
            .query_row([&self.name], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        match row {
            Some((beat, 0)) if (self.landed..=self.tried).contains(&beat) => Ok(()),
            Some((beat, 0)) if (0..self.landed).contains(&beat) => {
                Err(Fault::Broken(format!("our beat went back from {} to {beat}", self.landed)))
            }
            _ => Err(Fault::LeaseGone),
        }
    }

    /// The next beat's number. To be called before the transaction, since a failed one may have landed.
    pub(super) fn next_beat(&mut self) -> i64 {
        self.tried += 1;
        self.tried
    }

    /// Writes beat number `beat`; the caller has checked the lease in the same transaction.
    pub(super) fn write_beat(&self, connection: &Connection, beat: i64) -> Result<(), Fault> {
        let changed = connection
            .prepare_cached("UPDATE incarnations SET beat = ?2 WHERE name = ?1 AND dead = 0")?
            .execute(params![self.name, beat])?;
        if changed == 1 { Ok(()) } else { Err(Fault::LeaseGone) }
    }

    /// The transaction of beat number `beat`, begun after the instant `began`, was committed. The answer is the instant
    /// until which the lease is good: 2 % less than the TTL, for the 1 % by which either clock may be off.
    pub(super) fn landed(&mut self, beat: i64, began: Instant) -> Instant {
        self.landed = beat;
        began + self.ttl * 98 / 100
    }
}

/// A row of `incarnations`.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) beat: i64,
    pub(super) ttl: Duration,
    pub(super) mark: Mark,
}

/// Whether a row is marked dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Alive,
    Dead,
}

/// Every incarnation in the file. There are as many as hosts, and some dead ones that are being cleaned up.
pub(super) fn read_rows(connection: &Connection) -> Result<Vec<Row>, Fault> {
    let mut statement = connection.prepare_cached("SELECT name, beat, ttl_ms, dead FROM incarnations")?;
    let rows = statement.query_map([], |row| {
        let (ttl_ms, dead): (i64, i64) = (row.get(2)?, row.get(3)?);
        Ok(Row {
            name: row.get(0)?,
            beat: row.get(1)?,
            ttl: Duration::from_millis(ttl_ms.unsigned_abs()),
            mark: if dead == 0 { Mark::Alive } else { Mark::Dead },
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Marks `suspect` dead, unless it has beaten since; says whether it is marked now.
pub(super) fn mark_dead(connection: &Connection, suspect: &Suspect) -> Result<bool, Fault> {
    let changed = connection
        .prepare_cached("UPDATE incarnations SET dead = 1 WHERE name = ?1 AND beat = ?2 AND dead = 0")?
        .execute(params![suspect.name, suspect.beat])?;
    Ok(changed == 1)
}

/// An incarnation whose counter stood still for its whole TTL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) name: String,
    pub(super) beat: i64,
}

/// What we have seen of the other incarnations. Pure: instants come in as arguments.
#[derive(Debug)]
pub(super) struct Observer {
    ttl: Duration,
    alive: HashMap<String, Sight>,
    dead: HashMap<String, Instant>,
    last_beat: Option<Instant>,
    judge_from: Instant,
}

#[derive(Debug)]
struct Sight {
    beat: i64,
    first_seen: Instant,
    ttl: Duration,
}

impl Observer {
    /// For a host with this lease TTL.
    pub(super) fn new(ttl: Duration) -> Self {
        Self { ttl, alive: HashMap::new(), dead: HashMap::new(), last_beat: None, judge_from: Instant::default() }
    }

    /// A beat of ours landed.
    pub(super) fn own_beat_landed(&mut self, now: Instant) {
        let interval = Lease::beat_interval(self.ttl);
        if self.last_beat.is_none_or(|last| now.saturating_since(last) > interval * 2) {
            self.judge_from = now + Lease::beat_interval(self.longest_ttl()) * 2;
        }
        self.last_beat = Some(now);
    }

    /// The longest TTL of those that may be alive, and ours.
    pub(super) fn longest_ttl(&self) -> Duration {
        self.alive.values().map(|sight| sight.ttl).chain([self.ttl]).max().unwrap_or(self.ttl)
    }

    /// Takes in rows that were read before `now`; true if one is seen dead for the first time.
    pub(super) fn look(&mut self, rows: &[Row], me: &str, now: Instant) -> bool {
        let mut news = false;
        for row in rows.iter().filter(|row| row.name != me) {
            match row.mark {
                Mark::Dead => news |= self.note_dead(&row.name, now),
                Mark::Alive => self.note_alive(row, now),
            }
        }
        self.alive.retain(|name, _| rows.iter().any(|row| row.name == *name));
        self.dead.retain(|name, _| rows.iter().any(|row| row.name == *name));
        news
    }

    fn note_alive(&mut self, row: &Row, now: Instant) {
        let sight = Sight { beat: row.beat, first_seen: now, ttl: row.ttl.max(self.ttl) };
        match self.alive.get_mut(&row.name) {
            Some(known) if known.beat == row.beat => {}
            Some(known) => *known = sight,
            None => drop(self.alive.insert(row.name.clone(), sight)),
        }
    }

    fn note_dead(&mut self, name: &str, now: Instant) -> bool {
        self.alive.remove(name);
        if self.dead.contains_key(name) {
            return false;
        }
        self.dead.insert(name.to_owned(), now);
        true
    }

    /// Since when we know this one to be dead; from `now` on, if that is news.
    pub(super) fn dead_since(&mut self, name: &str, now: Instant) -> Instant {
        self.note_dead(name, now);
        self.dead.get(name).copied().unwrap_or(now)
    }

    /// Whose counter stood still for too long, while we looked.
    pub(super) fn suspects(&self, now: Instant) -> Vec<Suspect> {
        if now < self.judge_from || !self.looking(now) {
            return Vec::new();
        }
        let overdue = |sight: &&Sight| now >= sight.first_seen + sight.ttl;
        let suspects = self.alive.iter().filter(|(_, sight)| overdue(sight));
        suspects.map(|(name, sight)| Suspect { name: name.clone(), beat: sight.beat }).collect()
    }

    /// Our own beats land: what hinders the others does not hinder us.
    fn looking(&self, now: Instant) -> bool {
        self.last_beat.is_some_and(|last| now.saturating_since(last) <= Lease::beat_interval(self.ttl) * 2)
    }

    /// When [`Observer::suspects`] may have news, if no counter moves.
    pub(super) fn next_judgement(&self) -> Option<Instant> {
        let first = self.alive.values().map(|sight| sight.first_seen + sight.ttl).min()?;
        Some(first.max(self.judge_from))
    }

    /// The dead whose rows are still there, and since when we know.
    pub(super) fn dead(&self) -> impl Iterator<Item = (&String, Instant)> {
        self.dead.iter().map(|(name, since)| (name, *since))
    }

    /// Whether another host shares the file.
    pub(super) fn has_company(&self) -> bool {
        !self.alive.is_empty()
    }
}

/// Whole milliseconds, rounded up: what is remembered must not be less than what was promised.
pub(super) fn millis_up(duration: Duration) -> i64 {
    let micros = duration.as_micros();
    i64::try_from(micros.div_ceil(1_000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(1);

    fn at(ms: u64) -> Instant {
        Instant::from_micros(ms * 1_000)
    }

    fn other(beat: i64, ttl: Duration, mark: Mark) -> Row {
        Row { name: "other".into(), beat, ttl, mark }
    }

    /// An observer that has beaten every 200 ms up to `until_ms`.
    fn steady(until_ms: u64) -> Observer {
        let mut observer = Observer::new(TTL);
        beats(&mut observer, 0, until_ms);
        observer
    }

    fn beats(observer: &mut Observer, from_ms: u64, until_ms: u64) {
        (from_ms..=until_ms).step_by(200).for_each(|ms| observer.own_beat_landed(at(ms)));
    }

    #[test]
    fn silence_for_a_ttl_makes_a_suspect() {
        let mut observer = steady(1_000);
        observer.look(&[other(7, TTL, Mark::Alive)], "me", at(1_000));
        beats(&mut observer, 1_200, 1_800);
        observer.look(&[other(7, TTL, Mark::Alive)], "me", at(1_999));
        assert_eq!(observer.suspects(at(1_999)), []);
        assert_eq!(observer.next_judgement(), Some(at(2_000)));
        assert_eq!(observer.suspects(at(2_000)), [Suspect { name: "other".into(), beat: 7 }]);
    }

    #[test]
    fn a_beat_starts_the_ttl_anew() {
        let mut observer = steady(1_000);
        observer.look(&[other(7, TTL, Mark::Alive)], "me", at(1_000));
        observer.look(&[other(8, TTL, Mark::Alive)], "me", at(1_900));
        beats(&mut observer, 1_200, 2_800);
        assert_eq!(observer.suspects(at(2_899)), []);
        assert_eq!(observer.suspects(at(2_900)).len(), 1);
    }

    #[test]
    fn the_larger_of_both_ttls_counts() {
        for (theirs, due) in [(TTL * 3, 4_000), (TTL / 10, 2_000)] {
            let mut observer = steady(1_000);
            observer.look(&[other(7, theirs, Mark::Alive)], "me", at(1_000));
            beats(&mut observer, 1_200, 4_000);
            assert_eq!(observer.suspects(at(due - 1)), []);
            assert_eq!(observer.suspects(at(due)).len(), 1, "with a TTL of {theirs:?}");
        }
    }

    /// After a suspend, or while the file was locked for all, the others get two beats' time to show that they live.
    #[test]
    fn a_gap_in_our_own_beats_gives_the_others_time() {
        let mut observer = steady(1_000);
        observer.look(&[other(7, TTL, Mark::Alive)], "me", at(1_000));
        assert_eq!(observer.suspects(at(60_000)), [], "nobody is judged while our own beats do not land");
        observer.own_beat_landed(at(60_000));
        assert_eq!(observer.suspects(at(60_000)), []);
        beats(&mut observer, 60_200, 60_400);
        assert_eq!(observer.next_judgement(), Some(at(60_400)));
        assert_eq!(observer.suspects(at(60_400)).len(), 1);
        observer.look(&[other(8, TTL, Mark::Alive)], "me", at(60_400));
        assert_eq!(observer.suspects(at(60_400)), [], "it has beaten since");
    }

    #[test]
    fn a_mark_counts_from_our_first_sight_of_it() {
        let mut observer = steady(1_000);
        assert!(observer.look(&[other(7, TTL, Mark::Dead)], "me", at(1_000)));
        assert!(!observer.look(&[other(7, TTL, Mark::Dead)], "me", at(5_000)), "no news");
        assert_eq!(observer.dead_since("other", at(6_000)), at(1_000));
        observer.look(&[], "me", at(7_000));
        assert_eq!(observer.dead().count(), 0, "a row that is gone needs no memory");
    }

    #[test]
    fn we_do_not_judge_ourselves() {
        let mut observer = steady(5_000);
        observer.look(&[other(7, TTL, Mark::Alive)], "other", at(1_000));
        assert_eq!(observer.suspects(at(5_000)), []);
        assert!(!observer.has_company());
    }

    #[test]
    fn what_is_remembered_is_never_less_than_what_was_promised() {
        assert_eq!(millis_up(Duration::from_micros(1_001)), 2);
        assert_eq!(millis_up(Duration::from_millis(5)), 5);
        assert_eq!(millis_up(Duration::MAX), i64::MAX);
    }
}
