//! What a failure prints: the violation, the smallest case that still shows it, its trace, and how to run it again.

use std::fmt::Write;

use crate::case::Case;
use crate::log::Violation;
use crate::mutants::Sabotage;
use crate::run::run;
use crate::shrink::shrink;

/// Shrinking may take so many runs.
const SHRINK_RUNS: u32 = 3_000;

/// The environment variable that names a case to run.
pub(crate) const CASE: &str = "TURNSTILE_SIM_CASE";

/// The smallest case that goes wrong in the same way, and its trace.
pub(crate) struct Shrunk {
    pub(crate) case: Case,
    pub(crate) violation: Violation,
    pub(crate) trace: String,
}

pub(crate) fn shrunk(case: &Case, violation: &Violation, sabotage: Sabotage) -> Shrunk {
    let same_kind = |case: &Case| {
        let found = run(case, sabotage, false).violation;
        found.is_some_and(|found| found.kind == violation.kind)
    };
    let case = shrink(case, SHRINK_RUNS, same_kind);
    let verdict = run(&case, sabotage, true);
    let mut trace = String::new();
    for line in verdict.lines.iter().filter(|line| !line.routine) {
        writeln!(trace, "{}", line.text).unwrap();
    }
    let violation = verdict.violation.unwrap_or_else(|| violation.clone());
    Shrunk { case, violation, trace }
}

/// The whole of it.
pub(crate) fn failure(case: &Case, violation: &Violation, sabotage: Sabotage) -> String {
    let small = shrunk(case, violation, sabotage);
    let broken = match sabotage {
        Sabotage::Nothing => String::new(),
        sabotage => format!("TURNSTILE_SIM_SABOTAGE='{sabotage:?}' "),
    };
    let command = |case: &Case| {
        format!("{broken}{CASE}='{case}' cargo test -p turnstile-core --test simulation histories -- --nocapture")
    };
    format!(
        "seed {}: {violation}\nreplay: {}\n\nshrunk, without heartbeats and their answers:\n{}\n{}\nreplay: {}\n",
        case.seed,
        command(case),
        small.trace,
        small.violation,
        command(&small.case),
    )
}
