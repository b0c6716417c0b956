//! Puts the outcomes side by side, and says whether the demo showed what it is to show.

use std::collections::BTreeMap;
use std::time::Duration;

use super::journal::Account;
use crate::load::{Outcome, quantile};

/// What became of one burst.
#[derive(Debug)]
pub struct Burst {
    /// What the client saw.
    pub seen: Outcome,
    /// From the first request to the last answer.
    pub took: Duration,
    /// What is in the accounts at the end.
    pub money: i64,
    /// What the bank's journal says of the accounts.
    pub did: Vec<Account>,
}

/// Both bursts.
#[derive(Debug)]
pub struct Report {
    /// Deposits of each burst.
    pub deposits: usize,
    /// Past the plain Envoy.
    pub plain: Burst,
    /// Past Turnstile.
    pub guarded: Option<Burst>,
}

impl Burst {
    /// Deposits that were answered with 200 and are not in the accounts.
    pub fn lost(&self) -> i64 {
        i64::try_from(self.acknowledged()).unwrap_or(i64::MAX) - self.money
    }

    /// Executions that began while another one of the same account was at work.
    pub fn overlaps(&self) -> u64 {
        self.sum(|account| account.overlaps)
    }

    fn acknowledged(&self) -> usize {
        self.seen.count(200)
    }

    fn rate(&self) -> f64 {
        self.seen.statuses.values().sum::<usize>() as f64 / self.took.as_secs_f64().max(1e-9)
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

    /// Answers other than 200, and requests without an answer, by what they are.
    fn others(&self) -> String {
        let statuses = self.seen.statuses.iter().map(|(status, count)| (status.to_string(), *count));
        let mut others: BTreeMap<String, usize> = statuses.filter(|(status, _)| status != "200").collect();
        for fault in &self.seen.faults {
            *others.entry(fault.clone()).or_default() += 1;
        }
        let others: Vec<String> = others.iter().map(|(what, count)| format!("{count} x {what}")).collect();
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
                guarded.acknowledged() == self.deposits,
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
        let columns: Vec<(&str, &Burst)> = [("plain Envoy", &self.plain)]
            .into_iter()
            .chain(self.guarded.iter().map(|guarded| ("Turnstile", guarded)))
            .collect();
        let mut text = row("", columns.iter().map(|(name, _)| (*name).to_owned()));
        let mut add =
            |name: &str, of: &dyn Fn(&Burst) -> String| text += &row(name, columns.iter().map(|(_, burst)| of(burst)));
        add("deposits sent", &|_| grouped(self.deposits as i64));
        add("answered 200", &|burst| grouped(burst.acknowledged() as i64));
        add("other answers, errors", &Burst::others);
        add("money in the accounts", &|burst| grouped(burst.money));
        add("DEPOSITS LOST", &|burst| grouped(burst.lost()));
        add("overlapping executions", &|burst| grouped(burst.overlaps() as i64));
        add("at once on one account, at most", &|burst| burst.at_once_max().to_string());
        add("fencing tokens at the bank", &Burst::tokens);
        add("requests/s", &|burst| grouped(burst.rate().round() as i64));
        add("answer time p50 / p99, ms", &|burst| quantiles(&burst.seen.latencies));
        if columns.iter().any(|(_, burst)| !burst.seen.waits.is_empty()) {
            add("  of it waiting for the lock", &|burst| quantiles(&burst.seen.waits));
        }
        text
    }
}

fn row(name: &str, cells: impl Iterator<Item = String>) -> String {
    let cells: String = cells.map(|cell| format!("{cell:>20}")).collect();
    format!("  {name:<32}{cells}\n")
}

fn quantiles(sorted: &[Duration]) -> String {
    match (quantile(sorted, 0.5), quantile(sorted, 0.99)) {
        (Some(median), Some(high)) => format!("{:.1} / {:.1}", median.as_secs_f64() * 1e3, high.as_secs_f64() * 1e3),
        _ => "-".into(),
    }
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
    use super::*;

    fn burst(acknowledged: usize, money: i64, account: Account) -> Burst {
        let seen = Outcome { statuses: BTreeMap::from([(200, acknowledged)]), ..Outcome::default() };
        Burst { seen, took: Duration::from_secs(1), money, did: vec![account] }
    }

    fn losing() -> Burst {
        let did = Account { executions: 10, overlaps: 7, at_once_max: 3, tokens_missing: 10, ..Account::default() };
        burst(10, 4, did)
    }

    fn good() -> Burst {
        burst(10, 10, Account { executions: 10, at_once_max: 1, ..Account::default() })
    }

    #[track_caller]
    fn check(plain: Burst, guarded: Burst, faults: usize) {
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
        check(losing(), burst(10, 9, good().did[0].clone()), 1);
        check(losing(), burst(9, 9, good().did[0].clone()), 1);
        let account = good().did[0].clone();
        for broken in [
            Account { overlaps: 1, ..account.clone() },
            Account { unfinished: 1, ..account.clone() },
            Account { executions: 9, ..account.clone() },
            Account { tokens_missing: 1, ..account.clone() },
            Account { tokens_not_rising: 1, ..account },
        ] {
            check(losing(), burst(10, 10, broken), 1);
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
