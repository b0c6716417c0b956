//! `cargo xtask bench etcd`: lock cycles of etcd's own lock service and of Turnstile on the same etcd, the hand-over of a
//! key between hosts, and what many owned keys cost.

use std::process::ExitCode;
use std::time::Duration;

use self::cycles::Side;
use self::report::{Measured, Report};
use self::row::Row;
use super::Fault;
use super::machine::{Machine, first_line};
use super::program::{self, Flags, number};
use crate::artifacts;
use crate::etcd::{Durability, Elections, Etcd, EtcdConfig, Security};

pub mod cycles;
pub mod hand_over;
pub mod hosts;
pub mod owned_keys;
pub mod report;
pub mod row;
pub mod tally;

const HELP: &str = "\
bench-etcd [--rounds N] [--seconds N] [--only ROW]... [--nodes N] [--connections N] [--sessions N]

Measures lock cycles/s, and the time from a release to the next grant, of etcd's own lock service and of Turnstile's
hosts on the same etcd; how long a key takes from one host to another; and what 100,000 owned keys weigh, and cost when
their owner dies. Prints one table, and leaves it in etcd.md and etcd.json in target/bench. Succeeds if everything
worked, whether or not the ratios to reach are reached.

  --rounds N       how often every row is measured, each round on a new etcd; owned-keys is measured once (5)
  --seconds N      length of a window; each row of lock cycles has two a round (4)
  --only ROW       only this row: keys-16, keys-64, fresh-16, fresh-64, fresh-given-up, hot-1, hot-16, hot-256,
                   hot-two-hosts, hot-three-hosts, hand-over, owned-keys; may be repeated
  --nodes N        members of etcd, all on this machine (1)
  --connections N  connections to etcd that the lock service's clients share (in each row, with which of 1, 4 and 16 it
                   makes most cycles in a trial)
  --sessions N     sessions that the clients of one host share (4)
";

/// What is tried for the lock service.
const CONNECTIONS: [usize; 3] = [1, 4, 16];

/// Length of a window in a trial.
const TRIAL: Duration = Duration::from_secs(2);

/// How to measure.
pub struct Plan {
    /// What all benches can be told.
    pub flags: Flags<Row>,
    /// Members of etcd.
    pub nodes: usize,
    /// Connections to etcd that the lock service's clients share; `None` if that has to be tried.
    pub connections: Option<usize>,
    /// Sessions that the clients of one host share.
    pub sessions: usize,
}

/// Runs the program on its arguments.
pub async fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    program::end("bench-etcd", run(arguments).await)
}

async fn run(arguments: impl Iterator<Item = String>) -> Result<(), Fault> {
    let (mut nodes, mut connections, mut sessions) = (1, None, 4);
    let flags = Flags::parse(arguments, |flag, value| {
        let mut count = || value().and_then(|text| Ok(number(flag, &text)? as usize));
        match flag {
            "--nodes" => nodes = count()?,
            "--connections" => connections = Some(count()?),
            "--sessions" => sessions = count()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    match flags {
        None => {
            print!("{HELP}");
            Ok(())
        }
        Some(flags) => measure(Plan { flags, nodes, connections, sessions }).await,
    }
}

async fn measure(plan: Plan) -> Result<(), Fault> {
    let machine = Machine::look(&std::env::temp_dir())?;
    let shared = try_connections(&plan).await?;
    let mut measured = Vec::new();
    for round in 1..=plan.flags.rounds {
        let etcd = start(&plan).await;
        for (number, (&row, &connections)) in (1..).zip(plan.flags.rows.iter().zip(&shared)) {
            if row == Row::OwnedKeys && round > 1 {
                continue;
            }
            eprint!("round {round} of {}: {} ... ", plan.flags.rounds, row.title());
            let before = measured.len();
            measure_row(&plan, (row, connections), (round, number), &etcd, &mut measured).await?;
            eprintln!("{}", measured[before..].iter().map(Measured::to_string).collect::<Vec<_>>().join("; "));
        }
    }
    let report = Report { commit: program::commit(), etcd: etcd_version(), plan, machine, measured };
    program::leave("etcd", &report.markdown(), &report.json())
}

/// With how many connections the lock service does best, for each row.
async fn try_connections(plan: &Plan) -> Result<Vec<usize>, Fault> {
    let etcd = start(plan).await;
    let (mut best, mut number) = (Vec::new(), 0);
    for row in &plan.flags.rows {
        let candidates = match (plan.connections, row) {
            (Some(connections), _) => vec![connections],
            (None, Row::Cycles(load)) => CONNECTIONS.into_iter().filter(|count| *count <= load.contenders).collect(),
            (None, Row::HandOver | Row::OwnedKeys) => vec![1],
        };
        let mut tried = Vec::new();
        if let (Row::Cycles(load), [_, _, ..]) = (row, &candidates[..]) {
            eprint!("trying connections for the lock service: {} ... ", load.title);
            for &connections in &candidates {
                number += 1;
                let sample = cycles::measure(&etcd, (load, Side::LockService), number, connections, TRIAL).await?;
                tried.push(sample.cycles_per_s);
            }
            eprintln!("{candidates:?} make {tried:.0?} cycles/s");
        }
        let (_, connections) = tried
            .into_iter()
            .chain([0.0])
            .zip(&candidates)
            .max_by(|one, other| one.0.total_cmp(&other.0))
            .unwrap_or((0.0, &1));
        best.push(*connections);
    }
    Ok(best)
}

async fn measure_row(
    plan: &Plan,
    (row, connections): (Row, usize),
    (round, number): (u32, u32),
    etcd: &Etcd,
    measured: &mut Vec<Measured>,
) -> Result<(), Fault> {
    match row {
        Row::Cycles(load) => {
            let window = Duration::from_secs(plan.flags.seconds);
            for (side, shared, number) in
                [(Side::LockService, connections, 2 * number), (Side::Turnstile, plan.sessions, 2 * number + 1)]
            {
                let sample = cycles::measure(etcd, (&load, side), number, shared, window).await?;
                measured.push(Measured::Cycles { load, round, side, shared, sample });
            }
        }
        Row::HandOver => measured.push(Measured::HandOver(hand_over::measure(etcd, 2 * number).await?)),
        // Memory that another load left to etcd would be filled first.
        Row::OwnedKeys => measured.push(Measured::OwnedKeys(owned_keys::measure(&start(plan).await).await?)),
    }
    Ok(())
}

/// An etcd as it comes, which writes to the disk before it acknowledges.
async fn start(plan: &Plan) -> Etcd {
    Etcd::start(&EtcdConfig {
        members: plan.nodes,
        durability: Durability::Fsync,
        elections: Elections::Default,
        security: Security::Plain,
        more: Vec::new(),
    })
    .await
}

/// As `etcd --version` tells it.
fn etcd_version() -> String {
    let line = first_line(&artifacts::etcd(), &["--version"]);
    line.strip_prefix("etcd Version: ").unwrap_or(&line).to_owned()
}
