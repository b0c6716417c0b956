//! Makes a failing case small: requests and faults are left out as long as what goes wrong stays the same.

use std::collections::BTreeSet;

use crate::case::{Case, Kept, Weather};
use crate::script::Script;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Element {
    Fault(usize),
    Ask(usize),
}

/// The smallest case that was found in so many runs. `fails` says whether a case goes wrong in the same way.
pub(crate) fn shrink(case: &Case, runs_max: u32, fails: impl Fn(&Case) -> bool) -> Case {
    let mut search = Search { runs_left: runs_max, fails };
    let mut best = case.clone();
    // Fair weather leaves the script as it is; what fails then too is far easier to read.
    let fair = Case { weather: Weather::Fair, ..case.clone() };
    if search.fails(&fair) {
        best = fair;
    }
    let script = Script::of(&best);
    let asks = best.asks.of(script.asks.len()).into_iter().map(Element::Ask);
    let mut kept: Vec<Element> = best.faults.of(script.faults.len()).into_iter().map(Element::Fault).collect();
    kept.extend(asks);
    loop {
        let before = kept.len();
        search.leave_out(&best, &mut kept);
        if kept.len() == before || search.runs_left == 0 {
            break;
        }
    }
    let best = with(&best, &kept);
    let fair = Case { weather: Weather::Fair, ..best.clone() };
    if search.fails(&fair) { fair } else { best }
}

struct Search<F> {
    runs_left: u32,
    fails: F,
}

impl<F: Fn(&Case) -> bool> Search<F> {
    fn fails(&mut self, case: &Case) -> bool {
        if self.runs_left == 0 {
            return false;
        }
        self.runs_left -= 1;
        (self.fails)(case)
    }

    /// Leaves out ever smaller pieces, from the end.
    fn leave_out(&mut self, case: &Case, kept: &mut Vec<Element>) {
        let mut piece = kept.len().div_ceil(2);
        while piece > 0 {
            let mut end = kept.len();
            while end > 0 {
                let start = end.saturating_sub(piece);
                let mut fewer = kept.clone();
                fewer.drain(start..end);
                if self.fails(&with(case, &fewer)) {
                    *kept = fewer;
                }
                end = start;
            }
            piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
        }
    }
}

fn with(case: &Case, kept: &[Element]) -> Case {
    let (mut asks, mut faults) = (BTreeSet::new(), BTreeSet::new());
    for element in kept {
        match element {
            Element::Ask(number) => asks.insert(*number),
            Element::Fault(number) => faults.insert(*number),
        };
    }
    Case { asks: Kept::Only(asks), faults: Kept::Only(faults), ..case.clone() }
}
