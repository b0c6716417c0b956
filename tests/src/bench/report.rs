//! The result of a run: medians and ratios, as a table for people and as JSON for comparisons.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Value, json};

use super::figures::{Spread, shown};
use super::machine::Machine;
use super::program::Rows;
use super::rig::Sample;
use super::row::Row;

/// Envoy CPU of a request that Turnstile guards, to that of one that ext_authz HTTP checks: at most this.
pub const RATIO_TO_REACH: f64 = 0.80;

/// The number of connections at which [`RATIO_TO_REACH`] counts.
pub const CONNECTIONS_THAT_COUNT: u32 = 32;

/// What was measured, and how.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    /// Changes when the configuration of the bench does: only figures of the same number can be compared.
    pub configuration: u32,
    /// How often every row was measured.
    pub rounds: u32,
    /// Length of a window, in seconds.
    pub seconds: u64,
    /// Length of the warm-up before a row's windows, in seconds.
    pub warm_up_seconds: u64,
    /// Connections of the windows, in their order.
    pub connections: Vec<u32>,
    /// Programs and their versions.
    pub versions: Vec<(String, String)>,
    /// Where it ran.
    pub machine: Machine,
}

/// One measured window, and where it belongs.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What stood in front of the route.
    pub row: Row,
    /// From 1.
    pub round: u32,
    /// How many connections made the load.
    pub connections: u32,
    /// The figures.
    pub sample: Sample,
}

/// A finished run.
pub struct Report {
    /// How it was measured.
    pub setup: Setup,
    /// All windows.
    pub measured: Vec<Measured>,
}

impl Report {
    /// The ratio that counts, if both of its rows were measured.
    pub fn ratio_that_counts(&self) -> Option<Spread> {
        self.ratio(CONNECTIONS_THAT_COUNT, |sample| sample.envoy_us, Row::RepeatedKeys, Row::AuthzHttp)
    }

    /// `of` to `to`: the spread of the ratios within each round, so that a slow round slows both.
    fn ratio(&self, connections: u32, figure: impl Fn(&Sample) -> f64, of: Row, to: Row) -> Option<Spread> {
        let both = (1..=self.setup.rounds)
            .filter_map(|round| Some((self.sample(of, round, connections)?, self.sample(to, round, connections)?)));
        Spread::of(both.map(|(of, to)| figure(of) / figure(to)))
    }

    fn sample(&self, row: Row, round: u32, connections: u32) -> Option<&Sample> {
        let wanted = |entry: &&Measured| entry.row == row && entry.round == round && entry.connections == connections;
        self.measured.iter().find(wanted).map(|entry| &entry.sample)
    }

    fn spread(&self, row: Row, connections: u32, figure: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
        let wanted = self.measured.iter().filter(|entry| entry.row == row && entry.connections == connections);
        Spread::of(wanted.filter_map(|entry| figure(&entry.sample)))
    }

    /// The report for people.
    pub fn markdown(&self) -> String {
        let mut text = String::from("# What a guarded request costs\n\n");
        self.write_setup(&mut text);
        for &connections in &self.setup.connections {
            self.write_table(&mut text, connections);
        }
        self.write_ratios(&mut text);
        text
    }

    fn write_setup(&self, text: &mut String) {
        let Setup { configuration, rounds, seconds, warm_up_seconds, connections, versions, machine } = &self.setup;
        let connections = connections.iter().map(u32::to_string).collect::<Vec<_>>().join(" and ");
        let versions =
            versions.iter().map(|(name, version)| format!("{name}: {version}")).collect::<Vec<_>>().join("; ");
        let others = Spread::of(self.measured.iter().map(|entry| entry.sample.others_cores));
        let others = others.map_or_else(String::new, |others| shown(others, 2));
        let _ = write!(
            text,
            "- Configuration {configuration} (tests/src/bench: overhead.yaml, overhead.lua, noop.wat). One Envoy worker; \
             POST /accounts/ID/transfer, answered by Envoy itself; wrk with 1 thread; nothing is pinned to a core; the \
             host has its own defaults, on a new SQLite file.\n\
             - Rounds: {rounds}, the rows in turn within each; every row of a round on newly started processes: \
             {warm_up_seconds} s of warm-up, then {seconds} s each with {connections} connections.\n\
             - Each figure is the median of the rounds, with [smallest .. largest]; ratios are taken within a round.\n\
             - {versions}\n\
             - Machine: {} cores, {}, Linux {}; a durable write takes {} us.\n\
             - CPU used meanwhile by programs that are not part of the bench, in cores: {others}\n",
            machine.cores, machine.processor, machine.kernel, machine.durable_write_us,
        );
    }

    fn write_table(&self, text: &mut String, connections: u32) {
        let noun = if connections == 1 { "connection" } else { "connections" };
        let _ = write!(
            text,
            "\n## {connections} {noun}\n\n\
             | | Envoy CPU us/request | to ext_authz HTTP | to no filter | requests/s | to ext_authz HTTP | p50 us | p99 us \
             | CPU of who is asked us/request |\n|---|---|---|---|---|---|---|---|---|\n"
        );
        for &row in Row::ALL {
            let Some(envoy) = self.spread(row, connections, |sample| Some(sample.envoy_us)) else {
                continue;
            };
            let of = |figure: fn(&Sample) -> f64, places| {
                let spread = self.spread(row, connections, |sample| Some(figure(sample)));
                spread.map_or_else(String::new, |spread| shown(spread, places))
            };
            let to = |figure: fn(&Sample) -> f64, to| {
                self.ratio(connections, figure, row, to)
                    .map_or_else(String::new, |ratio| format!("{:.2}", ratio.median))
            };
            let asked = self.spread(row, connections, |sample| sample.service_us);
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                row.title(),
                shown(envoy, 1),
                to(|sample| sample.envoy_us, Row::AuthzHttp),
                to(|sample| sample.envoy_us, Row::NoFilter),
                of(|sample| sample.requests_per_s, 0),
                to(|sample| sample.requests_per_s, Row::AuthzHttp),
                of(|sample| sample.p50_us, 0),
                of(|sample| sample.p99_us, 0),
                asked.map_or_else(|| "-".to_owned(), |asked| shown(asked, 1)),
            );
        }
    }

    fn write_ratios(&self, text: &mut String) {
        text.push('\n');
        match self.ratio_that_counts() {
            None => text.push_str("The ratio that counts was not measured: --only left out one of its rows.\n"),
            Some(ratio) => {
                let verdict = if ratio.median <= RATIO_TO_REACH { "reached" } else { "NOT REACHED" };
                let _ = writeln!(
                    text,
                    "**Envoy CPU per request, {CONNECTIONS_THAT_COUNT} connections: {} / {} = {} (to reach: at most \
                     {RATIO_TO_REACH:.2}): {verdict}**",
                    Row::RepeatedKeys.title(),
                    Row::AuthzHttp.title(),
                    shown(ratio, 2),
                );
            }
        }
    }

    /// The report for programs, with every window.
    pub fn json(&self) -> Value {
        let windows = self.measured.iter().map(|entry| {
            let mut window = json!(entry.sample);
            window["row"] = json!(entry.row.name());
            window["round"] = json!(entry.round);
            window["connections"] = json!(entry.connections);
            window
        });
        let ratio = self.ratio_that_counts();
        json!({
            "setup": self.setup,
            "ratio_that_counts": ratio,
            "ratio_to_reach": RATIO_TO_REACH,
            "reached": ratio.map(|ratio| ratio.median <= RATIO_TO_REACH),
            "windows": windows.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The second round was slow for both.
        let report = report(&[(1, 50.0, 100.0), (2, 300.0, 400.0), (3, 70.0, 100.0)]);
        let ratio = report.ratio_that_counts().unwrap();
        assert_eq!(ratio, Spread { median: 0.7, min: 0.5, max: 0.75 });
        assert!(report.markdown().contains("= 0.70 [0.50 .. 0.75] (to reach: at most 0.80): reached"));
        assert_eq!(report.json()["reached"], json!(true));
    }

    #[test]
    fn a_bar_that_is_missed_is_said_to_be() {
        let report = report(&[(1, 81.0, 100.0)]);
        assert!(report.markdown().contains("= 0.81 (to reach: at most 0.80): NOT REACHED"));
        assert_eq!(report.json()["reached"], json!(false));
    }

    #[test]
    fn a_ratio_without_its_rows_is_not_made_up() {
        let mut report = report(&[(1, 81.0, 100.0)]);
        report.measured.retain(|entry| entry.row != Row::AuthzHttp);
        assert!(report.markdown().contains("was not measured"));
        assert_eq!(report.json()["reached"], Value::Null);
    }

    /// Of (round, Envoy CPU with Turnstile, with ext_authz HTTP) at the connections that count.
    fn report(rounds: &[(u32, f64, f64)]) -> Report {
        let machine = Machine { kernel: String::new(), processor: String::new(), cores: 2, durable_write_us: 100 };
        let setup = Setup {
            configuration: 1,
            rounds: u32::try_from(rounds.len()).unwrap(),
            seconds: 4,
            warm_up_seconds: 1,
            connections: vec![32, 1],
            versions: Vec::new(),
            machine,
        };
        let window = |row, round, connections, envoy_us| {
            let service_us = Some(1.0);
            let (requests, requests_per_s, p50_us, p99_us, others_cores) = (10, 5.0, 1.0, 2.0, 0.0);
            let sample = Sample { requests, requests_per_s, envoy_us, service_us, p50_us, p99_us, others_cores };
            Measured { row, round, connections, sample }
        };
        let windows = rounds.iter().flat_map(|&(round, turnstile, authz)| {
            [
                window(Row::AuthzHttp, round, 32, authz),
                // What must not be mixed in.
                window(Row::AuthzHttp, round, 1, 1.0),
                window(Row::RepeatedKeys, round, 32, turnstile),
            ]
        });
        Report { setup, measured: windows.collect() }
    }
}
