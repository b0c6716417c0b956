//! The ways of messages: streams keep their order, may stall, and lose all that is under way when they break; what goes
//! to the store keeps its order for each key, what comes from it keeps its order.

use std::collections::BTreeMap;

use turnstile_core::LockKey;

use crate::case::Weather;
use crate::clock::MS;
use crate::random::{Part, Random};
use crate::store::Incarnation;
use crate::wire::{Run, Stream};

/// All links.
pub(crate) struct Links {
    seed: u64,
    weather: Weather,
    lines: BTreeMap<Part, Line>,
    /// When each direction of a stream stops delivering.
    cut: BTreeMap<(Stream, bool), u64>,
    /// When the last message of each direction of a stream arrives.
    last_message: BTreeMap<(Stream, bool), u64>,
    /// When the last operation of an incarnation on a key, or its last keepalive, arrives.
    last_operation: BTreeMap<(Incarnation, Option<LockKey>), u64>,
    last_event: BTreeMap<usize, u64>,
    /// What the run has not got through to the store by then is lost.
    store_cut: BTreeMap<Run, u64>,
}

/// The delays of one direction of a link.
struct Line {
    random: Random,
    stalled_until: u64,
}

impl Links {
    pub(crate) fn new(seed: u64, weather: Weather) -> Self {
        Self {
            seed,
            weather,
            lines: BTreeMap::new(),
            cut: BTreeMap::new(),
            last_message: BTreeMap::new(),
            last_operation: BTreeMap::new(),
            last_event: BTreeMap::new(),
            store_cut: BTreeMap::new(),
        }
    }

    /// When a message sent now arrives, if its stream lives that long.
    pub(crate) fn message(&mut self, now: u64, stream: Stream, to_host: bool) -> u64 {
        let line = self.line(Part::Stream { client: stream.0, to_host });
        let hiccup = if line.random.chance(5) { line.random.range(0, 300 * MS) } else { 0 };
        let at = self.through(now, Part::Stream { client: stream.0, to_host }, MS / 10, 5 * MS, hiccup);
        behind(self.last_message.entry((stream, to_host)).or_default(), at)
    }

    /// Whether what arrives now was lost.
    pub(crate) fn is_cut(&self, now: u64, stream: Stream, to_host: bool) -> bool {
        self.cut.get(&(stream, to_host)).is_some_and(|cut| *cut <= now)
    }

    /// The stream delivers until these instants.
    pub(crate) fn cut(&mut self, stream: Stream, to_host: u64, to_client: u64) {
        for (direction, at) in [(true, to_host), (false, to_client)] {
            let cut = self.cut.entry((stream, direction)).or_insert(at);
            *cut = at.min(*cut);
        }
    }

    /// Whether what arrives now was lost.
    pub(crate) fn is_cut_from_store(&self, now: u64, of: Run) -> bool {
        self.store_cut.get(&of).is_some_and(|cut| *cut <= now)
    }

    pub(crate) fn cut_store(&mut self, of: Run, at: u64) {
        self.store_cut.insert(of, at);
    }

    /// When an operation sent now reaches the store. Those on other keys may overtake it.
    pub(crate) fn operation(&mut self, now: u64, from: Incarnation, key: Option<&LockKey>) -> u64 {
        let at = self.through(now, Part::StoreLink { host: from.of.host, to_store: true }, MS / 2, 10 * MS, 0);
        behind(self.last_operation.entry((from, key.cloned())).or_default(), at)
    }

    /// The same, for one that none may overtake.
    pub(crate) fn operation_behind_all(&mut self, now: u64, from: Incarnation) -> u64 {
        let of_incarnation = self.last_operation.iter().filter(|((of, _), _)| *of == from);
        let mut last = of_incarnation.map(|(_, at)| *at).max().unwrap_or(0);
        behind(&mut last, self.operation(now, from, None))
    }

    pub(crate) fn event(&mut self, now: u64, host: usize) -> u64 {
        let at = self.through(now, Part::StoreLink { host, to_store: false }, MS / 2, 10 * MS, 0);
        behind(self.last_event.entry(host).or_default(), at)
    }

    /// Nothing gets through before then.
    pub(crate) fn stall(&mut self, part: Part, until: u64) {
        let line = self.line(part);
        line.stalled_until = line.stalled_until.max(until);
    }

    fn through(&mut self, now: u64, part: Part, least: u64, most: u64, hiccup: u64) -> u64 {
        let weather = self.weather;
        let line = self.line(part);
        let delay = line.random.range(least, most) + hiccup;
        let at = now + if weather == Weather::Fair { MS } else { delay };
        at.max(line.stalled_until)
    }

    fn line(&mut self, part: Part) -> &mut Line {
        let seed = self.seed;
        self.lines.entry(part).or_insert_with(|| Line { random: Random::of(seed, part), stalled_until: 0 })
    }
}

/// The instant `at`, or right behind the last.
fn behind(last: &mut u64, at: u64) -> u64 {
    *last = at.max(*last + 1);
    *last
}
