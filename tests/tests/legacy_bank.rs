//! The demo stands on the legacy bank telling the truth: overlaps are recorded when they happen, and only then.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpStream;
use turnstile_protocol::headers;
use turnstile_tests::demo::journal::{self, Account};
use turnstile_tests::http::Ask;
use turnstile_tests::load::Load;

/// A running bank.
struct Bank {
    parent: Child,
    address: SocketAddr,
    data: TempDir,
}

impl Bank {
    fn start(work_ms: u32) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut parent = Command::new(env!("CARGO_BIN_EXE_legacy-bank"))
            .args(["--workers", "3", "--work-ms", &work_ms.to_string(), "--data"])
            .arg(data.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split(' ').nth(3).and_then(|word| word.parse().ok());
        let address = address.unwrap_or_else(|| panic!("the bank said `{line}`"));
        Self { parent, address, data }
    }

    async fn burst(&self, accounts: &[&str], connections: usize, deposits: usize) {
        let paths: Vec<String> = accounts.iter().map(|account| format!("/accounts/{account}/deposit")).collect();
        let load =
            Load::start(&[self.address], connections, deposits, move |number| Ask::post(&paths[number % paths.len()]));
        load.finish().await.assert_all_ok(deposits);
    }

    async fn deposit(&self, account: &str, body: &'static str, token: Option<&str>) -> u16 {
        let ask = Ask::post(&format!("/accounts/{account}/deposit")).body(body);
        let ask = token.iter().fold(ask, |ask, token| ask.header(headers::TOKEN, token));
        ask.send(self.address).await.unwrap().status
    }

    async fn balance(&self, account: &str) -> i64 {
        let answer = Ask::get(&format!("/accounts/{account}")).send(self.address).await.unwrap();
        assert_eq!(answer.status, 200);
        answer.json()["balance"].as_i64().unwrap()
    }

    fn account(&self, account: &str) -> Account {
        read(self.data.path(), account)
    }
}

fn read(data: &Path, account: &str) -> Account {
    journal::read(data).unwrap().remove(account).unwrap_or_else(|| panic!("the journal knows nothing of {account}"))
}

impl Drop for Bank {
    fn drop(&mut self) {
        let _ = self.parent.kill();
        let _ = self.parent.wait();
    }
}

#[tokio::test]
async fn one_after_the_other_nothing_is_lost_and_nothing_overlaps() {
    let bank = Bank::start(1);
    bank.burst(&["a"], 1, 30).await;
    assert_eq!(bank.balance("a").await, 30);
    let expected = Account { executions: 30, at_once_max: 1, tokens_missing: 30, ..Account::default() };
    assert_eq!(bank.account("a"), expected);
}

#[tokio::test]
async fn all_at_once_updates_are_lost_and_the_overlaps_recorded() {
    // Long enough that eight requests sent together meet, however busy the machine is.
    let bank = Bank::start(200);
    bank.burst(&["a"], 8, 16).await;
    let account = bank.account("a");
    assert_eq!((account.executions, account.unfinished), (16, 0));
    assert!(account.overlaps > 0 && account.at_once_max > 1, "{account:?}");
    assert!(bank.balance("a").await < 16);
}

#[tokio::test]
async fn different_accounts_do_not_overlap() {
    let bank = Bank::start(20);
    tokio::join!(bank.burst(&["a"], 1, 10), bank.burst(&["b"], 1, 10));
    for name in ["a", "b"] {
        assert_eq!((bank.balance(name).await, bank.account(name).overlaps), (10, 0));
    }
}

#[tokio::test]
async fn fencing_tokens_are_recorded() {
    let bank = Bank::start(0);
    for token in [Some("5"), Some("6"), Some("6"), None, Some("7")] {
        assert_eq!(bank.deposit("a", "", token).await, 200);
    }
    let expected =
        Account { executions: 5, at_once_max: 1, tokens_missing: 1, tokens_not_rising: 1, ..Account::default() };
    assert_eq!(bank.account("a"), expected);
}

#[tokio::test]
async fn the_stats_page_tells_what_the_journal_says() {
    let bank = Bank::start(0);
    bank.burst(&["a"], 1, 3).await;
    let stats = Ask::get("/stats").send(bank.address).await.unwrap().json();
    assert_eq!((&stats["a"]["executions"], &stats["a"]["overlaps"]), (&3.into(), &0.into()));
}

#[tokio::test]
async fn requests_that_make_no_sense_change_nothing() {
    let bank = Bank::start(0);
    assert_eq!(bank.deposit("a", r#"{"amount": 5}"#, None).await, 200);
    assert_eq!(bank.deposit("a", r#"{"amount": "lots"}"#, None).await, 400);
    assert_eq!(bank.deposit("..", "", None).await, 400);
    assert_eq!(Ask::get("/accounts/b").send(bank.address).await.unwrap().status, 404);
    assert_eq!((bank.balance("a").await, bank.account("a").executions), (5, 1));
}

#[tokio::test]
async fn workers_end_with_their_parent() {
    let mut bank = Bank::start(0);
    bank.parent.kill().unwrap();
    bank.parent.wait().unwrap();
    // The socket closes when the last worker has ended.
    let start = Instant::now();
    while TcpStream::connect(bank.address).await.is_ok() {
        assert!(start.elapsed() < Duration::from_secs(20), "workers still serve without a parent");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
