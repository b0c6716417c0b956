//! Many histories, on all cores: what they came to together, and the first that goes wrong.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::case::Case;
use crate::log::Violation;
use crate::mutants::Sabotage;
use crate::run::run;

/// What many histories came to.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) runs: u64,
    /// Steps of the engines.
    pub(crate) steps: u64,
    /// How often what happened.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// Of the smallest seed that goes wrong.
    pub(crate) failure: Option<(u64, Violation)>,
}

/// Runs the seeds until one goes wrong.
pub(crate) fn explore(seeds: Range<u64>, sabotage: Sabotage) -> Summary {
    let (next, end) = (AtomicU64::new(seeds.start), AtomicU64::new(seeds.end));
    let summary = Mutex::new(Summary::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut own = Summary::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    // Smaller seeds than one that goes wrong are under way already, and finished.
                    if seed >= end.load(Ordering::Relaxed) {
                        break;
                    }
                    own.add(seed, sabotage);
                    if own.failure.is_some() {
                        end.fetch_min(seed, Ordering::Relaxed);
                        break;
                    }
                }
                summary.lock().unwrap().merge(own);
            });
        }
    });
    summary.into_inner().unwrap()
}

impl Summary {
    fn add(&mut self, seed: u64, sabotage: Sabotage) {
        let verdict = run(&Case::whole(seed), sabotage, false);
        let failure = verdict.violation.map(|violation| (seed, violation));
        self.merge(Self { runs: 1, steps: verdict.steps, counts: verdict.counts, failure });
    }

    fn merge(&mut self, other: Self) {
        self.runs += other.runs;
        self.steps += other.steps;
        for (what, count) in other.counts {
            *self.counts.entry(what).or_insert(0) += count;
        }
        let failures = [self.failure.take(), other.failure];
        self.failure = failures.into_iter().flatten().min_by_key(|(seed, _)| *seed);
    }
}
