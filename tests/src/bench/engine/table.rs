//! The result: one line a figure, with the bar that it is to reach, for people and for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use super::alone::Alone;
use super::load::Sample;
use super::row::Row;
use crate::bench::figures::{Spread, grouped, shown, shown_grouped};
use crate::bench::machine::Machine;
use crate::bench::program::Rows;

/// A finished run.
pub struct Table {
    /// How often every row of sessions was measured.
    pub rounds: u32,
    /// Length of a window, in seconds.
    pub seconds: u64,
    /// Of which version.
    pub commit: String,
    /// Where it ran.
    pub machine: Machine,
    /// The engine alone.
    pub alone: Alone,
    /// All windows.
    pub samples: Vec<(Row, Sample)>,
}

/// What a figure is to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bar {
    None,
    AtLeast(f64),
    AtMost(f64),
}

/// One line.
struct Line {
    what: String,
    unit: &'static str,
    value: Spread,
    places: usize,
    bar: Bar,
}

/// A figure of a row of sessions: what is added to the row's title, its unit, how to get it, its decimals, its bar.
type Column = (&'static str, &'static str, fn(&Sample) -> f64, usize, Bar);

/// Cycles per second of the engine alone.
const ALONE: Bar = Bar::AtLeast(1_000_000.0);
/// Cycles per second through a host's gRPC port.
const SESSIONS: Bar = Bar::AtLeast(100_000.0);
/// Bytes of an idle owned key whose name has 20.
const IDLE_KEY: Bar = Bar::AtMost(300.0);

/// The speeds of the engine alone: the bench, in words, and its bar.
const SPEEDS: [(&str, &str, Bar); 18] = [
    ("cycles/distinct keys/10000", "free keys, 10,000", ALONE),
    ("cycles/distinct keys/1000000", "free keys, 1,000,000", ALONE),
    ("handoffs/one key/1", "one key, 1 waiter", ALONE),
    ("handoffs/one key/100", "one key, 100 waiters", ALONE),
    ("handoffs/one key/100000", "one key, 100,000 waiters", ALONE),
    ("beside/shared/1", "shared, beside 1 holder", Bar::None),
    ("beside/shared/100", "shared, beside 100 holders", Bar::None),
    ("beside/shared/100000", "shared, beside 100,000 holders", Bar::None),
    ("beside/limited/1", "limit(n), beside 1 holder", Bar::None),
    ("beside/limited/100", "limit(n), beside 100 holders", Bar::None),
    ("beside/limited/100000", "limit(n), beside 100,000 holders", Bar::None),
    ("handoffs/limit 4/1", "limit(4), 1 waiter", Bar::None),
    ("handoffs/limit 4/100", "limit(4), 100 waiters", Bar::None),
    ("handoffs/limit 4/100000", "limit(4), 100,000 waiters", Bar::None),
    ("cycles/two keys", "two free keys at once, of 20,000", Bar::None),
    ("handoffs/two keys/1", "two keys at once, 1 waiter", Bar::None),
    ("handoffs/two keys/100", "two keys at once, 100 waiters", Bar::None),
    ("handoffs/two keys/100000", "two keys at once, 100,000 waiters", Bar::None),
];

/// What the speeds are to show: that the cost of a cycle hardly grows with how much there is of the rest.
const GROWTHS: [(&str, &str, &str); 3] = [
    ("cycles/distinct keys/1000000", "cycles/distinct keys/10000", "1,000,000 free keys to 10,000"),
    ("handoffs/one key/100", "handoffs/one key/1", "100 waiters of one key to 1"),
    ("handoffs/one key/100000", "handoffs/one key/1", "100,000 waiters of one key to 1"),
];

/// The weights: the thing, in words, and its bar.
const WEIGHTS: [(&str, &str, Bar); 3] = [
    ("idle_owned_key", "idle owned key, name of 20 bytes, at 1,000,000", IDLE_KEY),
    ("waiter", "waiter, at 1,000,000 of one key", Bar::None),
    ("hold", "hold with its key, at 1,000,000", Bar::None),
];

impl Bar {
    fn is_met(self, value: f64) -> Option<bool> {
        match self {
            Self::None => None,
            Self::AtLeast(bar) => Some(value >= bar),
            Self::AtMost(bar) => Some(value <= bar),
        }
    }

    fn text(self) -> String {
        match self {
            Self::None => "-".to_owned(),
            Self::AtLeast(bar) => format!(">= {}", grouped(bar, 0)),
            Self::AtMost(bar) => format!("<= {}", grouped(bar, 0)),
        }
    }
}

impl Table {
    /// The table for people.
    pub fn markdown(&self) -> String {
        let mut text = String::from("# The lock engine, alone and behind a host's gRPC port\n\n");
        let others = Spread::of(self.samples.iter().map(|(_, sample)| sample.others_cores));
        let others = others.map_or_else(|| "-".to_owned(), |others| shown(others, 2));
        let _ = write!(
            text,
            "- Medians, with [smallest .. largest]: of criterion's samples, in CPU time, for the engine alone; of table \
             sizes (900,000, 1,000,000 and 2^20 + 1; the one named counts) for bytes; of {} windows of {} s, each on a new \
             host pinned to one core, for sessions ({} of them, on a core of their own; SQLite store, all keys owned \
             before).\n\
             - {}, {} cores, Linux {}; commit {}. CPU used by other programs during the windows, in cores: {others}\n\n\
             | | unit | value | bar | |\n|---|---|---|---|---|\n",
            self.rounds,
            self.seconds,
            super::row::SESSIONS,
            self.machine.processor,
            self.machine.cores,
            self.machine.kernel,
            self.commit,
        );
        for line in self.lines() {
            let met = line.bar.is_met(line.value.median).map_or("", |met| if met { "met" } else { "NOT MET" });
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {met} |",
                line.what,
                line.unit,
                shown_grouped(line.value, line.places),
                line.bar.text()
            );
        }
        text
    }

    /// The table for programs, with every window.
    pub fn json(&self) -> Value {
        let lines = self.lines().into_iter().map(|line| {
            json!({
                "what": line.what,
                "unit": line.unit,
                "value": line.value,
                "bar": if line.bar == Bar::None { Value::Null } else { line.bar.text().into() },
                "met": line.bar.is_met(line.value.median),
            })
        });
        let windows = self.samples.iter().map(|(row, sample)| {
            let mut window = json!(sample);
            window["row"] = json!(row.name());
            window
        });
        let times = self.alone.times().iter().map(|(name, nanos)| json!({ "bench": name, "nanos": nanos }));
        json!({
            "commit": self.commit,
            "machine": self.machine,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "table": lines.collect::<Vec<_>>(),
            "engine_alone": times.collect::<Vec<_>>(),
            "windows": windows.collect::<Vec<_>>(),
        })
    }

    fn lines(&self) -> Vec<Line> {
        let speeds = SPEEDS.into_iter().filter_map(|(name, words, bar)| {
            let value = self.alone.per_second(name)?;
            Some(Line { what: format!("engine alone: {words}"), unit: "cycles/s", value, places: 0, bar })
        });
        let growths = GROWTHS.into_iter().filter_map(|(large, small, words)| {
            let ratio = self.alone.nanos(large)?.median / self.alone.nanos(small)?.median;
            let value = Spread { median: ratio, min: ratio, max: ratio };
            let what = format!("engine alone: cost of a cycle, {words}");
            Some(Line { what, unit: "times", value, places: 2, bar: Bar::None })
        });
        let weights = WEIGHTS.into_iter().filter_map(|(name, words, bar)| {
            let value = self.alone.bytes(name)?;
            Some(Line { what: words.to_owned(), unit: "bytes", value, places: 0, bar })
        });
        speeds.chain(growths).chain(weights).chain(Row::ALL.iter().flat_map(|&row| self.lines_of(row))).collect()
    }

    fn lines_of(&self, row: Row) -> Vec<Line> {
        // One key alone passes on as fast as grant and release travel, whatever the host's speed.
        let bar = if row == Row::HotKey { Bar::None } else { SESSIONS };
        let figures: [Column; 4] = [
            ("", "cycles/s", |sample| sample.cycles_per_s, 0, bar),
            (", host's CPU", "us/cycle", |sample| sample.host_us, 2, Bar::None),
            (", host's core in use", "cores", |sample| sample.host_cores, 2, Bar::None),
            (", load's core in use", "cores", |sample| sample.load_cores, 2, Bar::None),
        ];
        let lines = figures.into_iter().filter_map(|(suffix, unit, figure, places, bar)| {
            let of_row = self.samples.iter().filter(|(other, _)| *other == row);
            let value = Spread::of(of_row.map(|(_, sample)| figure(sample)))?;
            Some(Line { what: format!("sessions: {}{suffix}", row.title()), unit, value, places, bar })
        });
        lines.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_met_or_said_to_be_missed() {
        let sample = |cycles_per_s| {
            let (host_us, host_cores, load_cores, others_cores) = (5.0, 1.0, 0.5, 0.0);
            Sample { cycles_per_s, host_us, host_cores, load_cores, others_cores }
        };
        let machine = Machine { kernel: String::new(), processor: String::new(), cores: 2, durable_write_us: 100 };
        let samples = vec![
            (Row::DistinctKeys, sample(90_000.0)),
            (Row::DistinctKeys, sample(110_000.0)),
            (Row::DistinctKeys, sample(120_000.0)),
            (Row::HotKeys, sample(99_999.0)),
        ];
        let commit = String::new();
        let table = Table { rounds: 3, seconds: 4, commit, machine, alone: Alone::default(), samples };
        let text = table.markdown();
        assert!(text.contains("10,000 keys | cycles/s | 110,000 [90,000 .. 120,000] | >= 100,000 | met |"), "{text}");
        assert!(text.contains("15 waiters each | cycles/s | 99,999 | >= 100,000 | NOT MET |"), "{text}");
        assert_eq!(table.json()["table"][0]["met"], json!(true));
    }
}
