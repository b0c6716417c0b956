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
  --connections N  connections to etcd that the lock service's clients share (1)
  --sessions N     sessions that the clients of one host share (4)
";

/// How to measure.
pub struct Plan {
    /// What all benches can be told.
    pub flags: Flags<Row>,
    /// Members of etcd.
    pub nodes: usize,
    /// Connections to etcd that the lock service's clients share.
    pub connections: usize,
    /// Sessions that the clients of one host share.
    pub sessions: usize,
}

/// Runs the program on its arguments.
pub async fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    program::end("bench-etcd", run(arguments).await)
}

async fn run(arguments: impl Iterator<Item = String>) -> Result<(), Fault> {
    let (mut nodes, mut connections, mut sessions) = (1, 1, 4);
    let flags = Flags::parse(arguments, |flag, value| {
        let count: &mut usize = match flag {
            "--nodes" => &mut nodes,
            "--connections" => &mut connections,
            "--sessions" => &mut sessions,
            _ => return Ok(false),
        };
        *count = number(flag, &value()?)? as usize;
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
    let mut measured = Vec::new();
    for round in 1..=plan.flags.rounds {
        let etcd = start(&plan).await;
        for (number, &row) in (1..).zip(&plan.flags.rows) {
            eprint!("round {round} of {}: {} ... ", plan.flags.rounds, row.title());
            let before = measured.len();
            measure_row(&plan, row, (round, number), &etcd, &mut measured).await?;
            eprintln!("{}", measured[before..].iter().map(Measured::to_string).collect::<Vec<_>>().join("; "));
        }
    }
    let report = Report { commit: program::commit(), etcd: etcd_version(), plan, machine, measured };
    program::leave("etcd", &report.markdown(), &report.json())
}

async fn measure_row(
    plan: &Plan,
    row: Row,
    (round, number): (u32, u32),
    etcd: &Etcd,
    measured: &mut Vec<Measured>,
) -> Result<(), Fault> {
    match row {
        Row::Cycles(load) => {
            let window = Duration::from_secs(plan.flags.seconds);
            for (side, connections, number) in
                [(Side::LockService, plan.connections, 2 * number), (Side::Turnstile, plan.sessions, 2 * number + 1)]
            {
                let sample = cycles::measure(etcd, (&load, side), number, connections, window).await?;
                measured.push(Measured::Cycles { load, round, side, sample });
            }
        }
        Row::HandOver => measured.push(Measured::HandOver(hand_over::measure(etcd, 2 * number).await?)),
        // What another load left in etcd's memory would be filled first.
        Row::OwnedKeys if round == 1 => {
            measured.push(Measured::OwnedKeys(owned_keys::measure(&start(plan).await).await?));
        }
        Row::OwnedKeys => {}
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
