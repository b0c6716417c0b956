//! The result: both sides beside each other, with the ratios to reach, for people and for programs.

use std::fmt::{self, Display, Write};

use serde_json::{Value, json};

use super::cycles::{Sample, Side};
use super::hand_over::{HAND_OVERS, WRITES_TO_REACH};
use super::row::{Load, Row};
use super::{Plan, hand_over, owned_keys};
use crate::bench::figures::{Spread, grouped, shown, shown_grouped};
use crate::bench::machine::Machine;

/// A finished run.
pub struct Report {
    /// Of which version.
    pub commit: String,
    /// The version of etcd.
    pub etcd: String,
    /// How it was measured.
    pub plan: Plan,
    /// Where it ran.
    pub machine: Machine,
    /// All windows.
    pub measured: Vec<Measured>,
}

/// Something measured, and where it belongs.
pub enum Measured {
    /// A window of lock cycles.
    Cycles {
        /// The load.
        load: Load,
        /// From 1.
        round: u32,
        /// Who granted the locks.
        side: Side,
        /// Connections to etcd that the clients of the lock service shared, or sessions that those of one host shared.
        shared: usize,
        /// The figures.
        sample: Sample,
    },
    /// A round of hand-overs.
    HandOver(hand_over::Sample),
    /// The owned keys.
    OwnedKeys(owned_keys::Sample),
}

impl Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cycles { side, sample, .. } => {
                let who = match side {
                    Side::LockService => "lock service",
                    Side::Turnstile => "Turnstile",
                };
                write!(f, "{who} {:.0} cycles/s, p50 {:.0} us", sample.cycles_per_s, sample.p50_us)
            }
            Self::HandOver(sample) => write!(f, "p50 {:.0} us, {:.2} writes", sample.p50_us, sample.writes()),
            Self::OwnedKeys(sample) => write!(f, "{:.1} requests/s at rest", sample.idle_requests_per_s),
        }
    }
}

impl Report {
    /// The report for people.
    pub fn markdown(&self) -> String {
        let mut text = String::from("# Turnstile on etcd, and etcd's own lock service\n\n");
        self.write_setup(&mut text);
        self.write_cycles(&mut text);
        self.write_hand_overs(&mut text);
        self.write_owned_keys(&mut text);
        text
    }

    fn write_setup(&self, text: &mut String) {
        let Plan { flags, nodes, connections, sessions } = &self.plan;
        let chosen = if connections.is_some() { "as asked for" } else { "as many as did best in a trial" };
        let Machine { kernel, processor, cores, durable_write_us } = &self.machine;
        let others = Spread::of(self.cycles(|_, _, _| true).map(|sample| sample.others_cores));
        let others = others.map_or_else(|| "-".to_owned(), |others| shown(others, 2));
        let _ = write!(
            text,
            "- etcd {}, {nodes} on this machine, default options, fsync on; a new one each round. The lock service's \
             clients have a lease each and share a few connections ({chosen}). Turnstile's hosts are as shipped; the \
             clients of one host share {sessions} session(s), and a client releases and asks again in one message. \
             Where there is one key, Turnstile's hosts and the load share a core; else nothing is pinned.\n\
             - {} rounds, windows of {} s; within a round each row is measured on both sides in turn. Medians with \
             [smallest .. largest]; ratios are taken within a round. A time is from a release to the next grant: of the \
             key if it is one, else of the same client.\n\
             - {processor}, {cores} cores, Linux {kernel}; a durable write takes {durable_write_us} us; commit {}. CPU \
             used by other programs during the windows, in cores: {others}\n",
            self.etcd, flags.rounds, flags.seconds, self.commit,
        );
    }

    fn write_cycles(&self, text: &mut String) {
        if self.loads().next().is_none() {
            return;
        }
        text.push_str(
            "\n| | connections | lock service, cycles/s | p50 us | p99 us | etcd CPU us/cycle | Turnstile, cycles/s | p50 us | p99 us \
             | etcd CPU us/cycle | hosts' CPU us/cycle | Turnstile / lock service | to reach | |\n\
             |---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
        );
        for load in self.loads() {
            let of = |side, figure: fn(&Sample) -> f64, places| {
                let spread = Spread::of(self.cycles(|other, _, of| *other == load && of == side).map(figure));
                spread.map_or_else(String::new, |spread| shown_grouped(spread, places))
            };
            let ratio = self.ratio(&load);
            let (bar, verdict) = load
                .to_reach
                .zip(ratio)
                .map_or(("-".to_owned(), ""), |(bar, ratio)| (format!(">= {bar}"), verdict(ratio.median >= bar)));
            let (theirs, ours) = (Side::LockService, Side::Turnstile);
            let cells = [
                load.title.to_owned(),
                self.connections(&load).to_string(),
                of(theirs, |sample| sample.cycles_per_s, 0),
                of(theirs, |sample| sample.p50_us, 0),
                of(theirs, |sample| sample.p99_us, 0),
                of(theirs, |sample| sample.etcd_us, 0),
                of(ours, |sample| sample.cycles_per_s, 0),
                of(ours, |sample| sample.p50_us, 0),
                of(ours, |sample| sample.p99_us, 0),
                of(ours, |sample| sample.etcd_us, 1),
                of(ours, |sample| sample.hosts_us, 1),
                ratio.map_or_else(String::new, |ratio| shown(ratio, if ratio.median < 10.0 { 2 } else { 0 })),
                bar,
                verdict.to_owned(),
            ];
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        }
    }

    fn write_hand_overs(&self, text: &mut String) {
        let spread = |figure: fn(&hand_over::Sample) -> f64| Spread::of(self.hand_overs().map(figure));
        let (Some(p50), Some(p99), Some(write_p50), Some(write_p99), Some(writes)) = (
            spread(|sample| sample.p50_us),
            spread(|sample| sample.p99_us),
            spread(|sample| sample.write_p50_us),
            spread(|sample| sample.write_p99_us),
            spread(hand_over::Sample::writes),
        ) else {
            return;
        };
        let _ = write!(
            text,
            "\n## Hand-over between two hosts\n\n\
             From the release at the one host to the grant at the other, which waits for the key already; {HAND_OVERS} a \
             round, in turn with single writes to the same etcd.\n\n\
             | | p50 us | p99 us |\n|---|---|---|\n\
             | hand-over | {} | {} |\n| one put to etcd | {} | {} |\n\n\
             **p50 of a hand-over, in writes: {} (to reach: at most {WRITES_TO_REACH}): {}**\n",
            shown_grouped(p50, 0),
            shown_grouped(p99, 0),
            shown_grouped(write_p50, 0),
            shown_grouped(write_p99, 0),
            shown(writes, 2),
            verdict(writes.median <= WRITES_TO_REACH),
        );
    }

    fn write_owned_keys(&self, text: &mut String) {
        let Some(sample) = self.owned_keys() else { return };
        let requests = || sample.after_death.iter().map(|second| second.requests_per_s);
        let cores = || sample.after_death.iter().map(|second| second.etcd_cores);
        let _ = write!(
            text,
            "\n## {} owned keys\n\n\
             One host owns them all, another one is alive. Once; on a new etcd. Weights are what was there after the \
             claims less what was there before, names of 20 bytes. After the owner is killed, {} of its keys are asked \
             for at the other host (leases of 5 s, lock delays of 15 s).\n\n\
             | | |\n|---|---|\n\
             | etcd, resident set | {} bytes/key |\n\
             | etcd, database in use | {} bytes/key |\n\
             | host, resident set | {} bytes/key |\n\
             | etcd at rest | {:.2} requests/s, {:.3} cores |\n\
             | etcd in the {} s after the owner's death | {} requests/s, {:.3} cores |\n\
             | the busiest second of them | {} requests/s, {:.2} cores |\n\
             | first and last of the {} keys granted | {:.1} s, {:.1} s after the death |\n",
            grouped(owned_keys::KEYS as f64, 0),
            owned_keys::WANTED,
            grouped(sample.etcd_resident, 0),
            grouped(sample.etcd_database, 0),
            grouped(sample.host_resident, 0),
            sample.idle_requests_per_s,
            sample.idle_etcd_cores,
            sample.after_death.len(),
            grouped(requests().sum::<f64>() / sample.after_death.len() as f64, 0),
            cores().sum::<f64>() / sample.after_death.len() as f64,
            grouped(requests().fold(0.0, f64::max), 0),
            cores().fold(0.0, f64::max),
            owned_keys::WANTED,
            sample.first_grant_s,
            sample.last_grant_s,
        );
    }

    /// The report for programs, with every window.
    pub fn json(&self) -> Value {
        let windows = self.measured.iter().filter_map(|measured| {
            let Measured::Cycles { load, round, side, shared, sample } = measured else { return None };
            let mut window = json!(sample);
            window["row"] = json!(load.name);
            window["round"] = json!(round);
            window["side"] = json!(side);
            window["shared"] = json!(shared);
            Some(window)
        });
        let ratios = self.loads().map(|load| {
            let ratio = self.ratio(&load);
            let reached = load.to_reach.zip(ratio).map(|(bar, ratio)| ratio.median >= bar);
            json!({ "row": load.name, "ratio": ratio, "to_reach": load.to_reach, "reached": reached })
        });
        let writes = Spread::of(self.hand_overs().map(hand_over::Sample::writes));
        json!({
            "commit": self.commit,
            "machine": self.machine,
            "etcd": self.etcd,
            "rounds": self.plan.flags.rounds,
            "seconds": self.plan.flags.seconds,
            "nodes": self.plan.nodes,
            "sessions": self.plan.sessions,
            "ratios": ratios.collect::<Vec<_>>(),
            "windows": windows.collect::<Vec<_>>(),
            "hand_over": {
                "rounds": self.hand_overs().collect::<Vec<_>>(),
                "writes": writes,
                "to_reach": WRITES_TO_REACH,
                "reached": writes.map(|writes| writes.median <= WRITES_TO_REACH),
            },
            "owned_keys": self.owned_keys(),
        })
    }

    /// The ratio of a load: within each round, so that a slow round slows both sides.
    fn ratio(&self, load: &Load) -> Option<Spread> {
        let of = |round, side| {
            let mut found = self.cycles(move |other, number, of| other == load && number == round && of == side);
            found.next().map(|sample| sample.cycles_per_s)
        };
        Spread::of(
            (1..=self.plan.flags.rounds)
                .filter_map(|round| Some(of(round, Side::Turnstile)? / of(round, Side::LockService)?)),
        )
    }

    /// How many the lock service's clients shared.
    fn connections(&self, load: &Load) -> usize {
        let of_load = |measured: &Measured| match measured {
            Measured::Cycles { load: other, side: Side::LockService, shared, .. } if other == load => Some(*shared),
            _ => None,
        };
        self.measured.iter().find_map(of_load).unwrap_or_default()
    }

    fn loads(&self) -> impl Iterator<Item = Load> {
        self.plan.flags.rows.iter().filter_map(|row| if let Row::Cycles(load) = row { Some(*load) } else { None })
    }

    fn cycles(&self, wanted: impl Fn(&Load, u32, Side) -> bool) -> impl Iterator<Item = &Sample> {
        self.measured.iter().filter_map(move |measured| match measured {
            Measured::Cycles { load, round, side, sample, .. } if wanted(load, *round, *side) => Some(sample),
            _ => None,
        })
    }

    fn hand_overs(&self) -> impl Iterator<Item = &hand_over::Sample> {
        self.measured
            .iter()
            .filter_map(|measured| if let Measured::HandOver(sample) = measured { Some(sample) } else { None })
    }

    fn owned_keys(&self) -> Option<&owned_keys::Sample> {
        self.measured
            .iter()
            .find_map(|measured| if let Measured::OwnedKeys(sample) = measured { Some(sample) } else { None })
    }
}

fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "NOT REACHED" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::program::{Flags, Rows};

    #[test]
    fn ratios_are_taken_within_a_round_and_compared_with_the_bar() {
        // The second round was slow for both sides.
        let report = report("hot-16", &[(100.0, 12_000.0), (10.0, 900.0), (100.0, 11_000.0)]);
        let ratio = report.ratio(&report.loads().next().unwrap()).unwrap();
        assert_eq!(ratio, Spread { median: 110.0, min: 90.0, max: 120.0 });
        let text = report.markdown();
        assert!(text.contains("| 110 [90 .. 120] | >= 100 | reached |"), "{text}");
        assert_eq!(report.json()["ratios"][0]["reached"], json!(true));
    }

    #[test]
    fn a_bar_that_is_missed_is_said_to_be_and_one_that_is_not_there_is_not_made_up() {
        let report_of = |row| report(row, &[(100.0, 79.0)]);
        let missed = report_of("fresh-16");
        assert!(missed.markdown().contains("| 0.79 | >= 0.8 | NOT REACHED |"), "{}", missed.markdown());
        assert_eq!(missed.json()["ratios"][0]["reached"], json!(false));
        let without = report_of("hot-1");
        assert!(without.markdown().contains("| 0.79 | - |  |"), "{}", without.markdown());
        assert_eq!(without.json()["ratios"][0]["reached"], Value::Null);
        assert!(!without.markdown().contains("hand-over, in writes"), "it was not measured");
    }

    #[test]
    fn hand_overs_are_counted_in_writes() {
        let mut report = report("hot-1", &[]);
        for (p50_us, write_p50_us) in [(900.0, 300.0), (1_000.0, 400.0), (4_000.0, 1_000.0)] {
            let (p99_us, write_p99_us) = (9_000.0, 5_000.0);
            report.measured.push(Measured::HandOver(hand_over::Sample { p50_us, p99_us, write_p50_us, write_p99_us }));
        }
        assert!(
            report.markdown().contains("3.00 [2.50 .. 4.00] (to reach: at most 3): reached"),
            "{}",
            report.markdown()
        );
        assert_eq!(report.json()["hand_over"]["reached"], json!(true));
    }

    /// Of one row, with cycles per second of the lock service and of Turnstile in each round.
    fn report(row: &str, rounds: &[(f64, f64)]) -> Report {
        let row = *Row::ALL.iter().find(|other| other.name() == row).unwrap();
        let Row::Cycles(load) = row else { panic!("{row:?} has no cycles") };
        let window = |round, side, cycles_per_s| {
            let [p50_us, p99_us, hosts_us, etcd_us, load_us] = [1.0, 2.0, 3.0, 4.0, 5.0];
            let sample = Sample { cycles_per_s, p50_us, p99_us, hosts_us, etcd_us, load_us, others_cores: 0.0 };
            Measured::Cycles { load, round, side, shared: 4, sample }
        };
        let both = (1..).zip(rounds).flat_map(|(round, &(theirs, ours))| {
            [window(round, Side::LockService, theirs), window(round, Side::Turnstile, ours)]
        });
        let flags = Flags { rounds: u32::try_from(rounds.len()).unwrap(), seconds: 4, rows: vec![row] };
        Report {
            commit: String::new(),
            etcd: String::new(),
            plan: Plan { flags, nodes: 1, connections: None, sessions: 4 },
            machine: Machine { kernel: String::new(), processor: String::new(), cores: 2, durable_write_us: 100 },
            measured: both.collect(),
        }
    }
}
