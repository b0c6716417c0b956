//! Puts the outcomes side by side, and says whether the demo showed what it is to show.

use hdrhistogram::Histogram;

use super::journal::Account;
use super::load::Seen;

/// What became of one burst.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the client saw.
    pub seen: Seen,
    /// What is in the accounts at the end.
    pub money: i64,
    /// What the bank's journal says of the accounts.
    pub did: Vec<Account>,
}

/// Both bursts.
#[derive(Clone, Debug)]
pub struct Report {
    /// Deposits of each burst.
    pub deposits: usize,
    /// Past the plain Envoy.
    pub plain: Outcome,
    /// Past Turnstile.
    pub guarded: Option<Outcome>,
}

impl Outcome {
    /// Deposits that were answered with 200 and are not in the accounts.
    pub fn lost(&self) -> i64 {
        i64::try_from(self.seen.acknowledged()).unwrap_or(i64::MAX) - self.money
    }

    /// Executions that began while another one of the same account was at work.
    pub fn overlaps(&self) -> u64 {
        self.sum(|account| account.overlaps)
    }

    fn sum(&self, of: impl Fn(&Account) -> u64) -> u64 {
        self.did.iter().map(of).sum()
    }

    fn at_once_max(&self) -> u64 {
        self.did.iter().map(|account| account.at_once_max).max().unwrap_or(0)
    }

    fn tokens(&self) -> String {
        match (self.sum(|account| account.tokens_missing), self.sum(|account| account.tokens_not_rising)) {
            (0, 0) => "strictly rising".into(),
            (missing, 0) if missing == self.sum(|account| account.executions) => "none".into(),
            (missing, not_rising) => format!("{missing} missing, {not_rising} not rising"),
        }
    }

    fn others(&self) -> String {
        let statuses = self
            .seen
            .answers
            .iter()
            .filter(|(status, _)| **status != 200)
            .map(|(status, count)| format!("{count} x {status}"));
        let errors = self.seen.errors.iter().map(|(error, count)| format!("{count} x {error}"));
        let others: Vec<String> = statuses.chain(errors).collect();
        if others.is_empty() { "0".into() } else { others.join(", ") }
    }
}

impl Report {
    /// What is not as it should be; empty if the demo showed what it is to show.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut expect = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        let plain = &self.plain;
        expect(
            plain.lost() > 0 && plain.overlaps() > 0,
            "nothing was lost past the plain Envoy, so nothing was shown: try more --connections, or a longer --work-ms".into(),
        );
        if let Some(guarded) = &self.guarded {
            let deposits = self.deposits as u64;
            expect(
                guarded.seen.acknowledged() == self.deposits,
                format!("past Turnstile, not all answers were 200: {}", guarded.others()),
            );
            expect(guarded.lost() == 0, format!("past Turnstile, {} deposits were lost", guarded.lost()));
            expect(guarded.overlaps() == 0, format!("past Turnstile, {} executions overlapped", guarded.overlaps()));
            let (executions, unfinished) =
                (guarded.sum(|account| account.executions), guarded.sum(|account| account.unfinished));
            expect(
                executions == deposits && unfinished == 0,
                format!("past Turnstile, {executions} executions began and {unfinished} did not end"),
            );
            expect(
                guarded.tokens() == "strictly rising",
                format!("past Turnstile, fencing tokens: {}", guarded.tokens()),
            );
        }
        faults
    }

    /// The outcomes side by side.
    pub fn table(&self) -> String {
        let columns: Vec<(&str, &Outcome)> = [("plain Envoy", &self.plain)]
            .into_iter()
            .chain(self.guarded.iter().map(|guarded| ("Turnstile", guarded)))
            .collect();
        let mut text = row("", columns.iter().map(|(name, _)| (*name).to_owned()));
        let mut add = |name: &str, of: &dyn Fn(&Outcome) -> String| {
            text += &row(name, columns.iter().map(|(_, outcome)| of(outcome)))
        };
        add("deposits sent", &|_| grouped(self.deposits as i64));
        add("answered 200", &|outcome| grouped(outcome.seen.acknowledged() as i64));
        add("other answers, errors", &Outcome::others);
        add("money in the accounts", &|outcome| grouped(outcome.money));
        add("DEPOSITS LOST", &|outcome| grouped(outcome.lost()));
        add("overlapping executions", &|outcome| grouped(outcome.overlaps() as i64));
        add("at once on one account, at most", &|outcome| outcome.at_once_max().to_string());
        add("fencing tokens at the bank", &Outcome::tokens);
        add("requests/s", &|outcome| grouped(outcome.seen.rate().round() as i64));
        add("answer time p50 / p99, ms", &|outcome| quantiles(&outcome.seen.answer_us));
        add("  of it waiting for the lock", &|outcome| quantiles(&outcome.seen.wait_us));
        text
    }
}

fn row(name: &str, cells: impl Iterator<Item = String>) -> String {
    let cells: String = cells.map(|cell| format!("{cell:>20}")).collect();
    format!("  {name:<32}{cells}\n")
}

fn quantiles(micros: &Histogram<u64>) -> String {
    if micros.is_empty() {
        return "-".into();
    }
    let ms = |quantile| micros.value_at_quantile(quantile) as f64 / 1e3;
    format!("{:.1} / {:.1}", ms(0.5), ms(0.99))
}

fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::from(if number < 0 { "-" } else { "" });
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;

    fn outcome(acknowledged: usize, money: i64, account: Account) -> Outcome {
        let histogram = || Histogram::new(3).unwrap();
        let seen = Seen {
            answers: BTreeMap::from([(200, acknowledged)]),
            errors: BTreeMap::new(),
            took: Duration::from_secs(1),
            answer_us: histogram(),
            wait_us: histogram(),
        };
        Outcome { seen, money, did: vec![account] }
    }

    fn losing() -> Outcome {
        let did = Account { executions: 10, overlaps: 7, at_once_max: 3, tokens_missing: 10, ..Account::default() };
        outcome(10, 4, did)
    }

    fn good() -> Outcome {
        outcome(10, 10, Account { executions: 10, at_once_max: 1, ..Account::default() })
    }

    #[track_caller]
    fn check(plain: Outcome, guarded: Outcome, faults: usize) {
        let found = Report { deposits: 10, plain, guarded: Some(guarded) }.faults();
        assert_eq!(found.len(), faults, "{found:?}");
    }

    #[test]
    fn loss_past_the_one_and_none_past_the_other_is_what_it_shows() {
        check(losing(), good(), 0);
    }

    #[test]
    fn every_fault_is_found() {
        check(good(), good(), 1);
        check(losing(), outcome(10, 9, good().did[0].clone()), 1);
        check(losing(), outcome(9, 9, good().did[0].clone()), 1);
        let account = good().did[0].clone();
        for broken in [
            Account { overlaps: 1, ..account.clone() },
            Account { unfinished: 1, ..account.clone() },
            Account { executions: 9, ..account.clone() },
            Account { tokens_missing: 1, ..account.clone() },
            Account { tokens_not_rising: 1, ..account },
        ] {
            check(losing(), outcome(10, 10, broken), 1);
        }
    }

    #[test]
    fn the_table_has_a_column_each() {
        let report = Report { deposits: 10, plain: losing(), guarded: Some(good()) };
        let lost = report.table().lines().find(|line| line.contains("LOST")).map(str::to_owned);
        assert_eq!(lost.unwrap().split_whitespace().collect::<Vec<_>>(), ["DEPOSITS", "LOST", "6", "0"]);
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1000, -1234567].map(grouped), ["0", "999", "1,000", "-1,234,567"]);
    }
}
