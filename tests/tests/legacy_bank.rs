//! The demo stands on the legacy bank telling the truth: overlaps are recorded when they happen, and only then.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpStream;
use turnstile_protocol::headers;
use turnstile_tests::demo::journal::{self, Account};
use turnstile_tests::demo::load::{self, Burst, Seen};

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

    async fn burst(&self, accounts: &[&str], connections: usize, deposits: usize) -> Seen {
        let accounts = accounts.iter().map(|account| (*account).to_owned()).collect();
        let seen = load::run(&Burst { to: self.address, accounts, connections, deposits }).await.unwrap();
        assert_eq!(seen.acknowledged(), deposits, "{seen:?}");
        seen
    }

    async fn deposit(&self, account: &str, body: &'static str, token: Option<&str>) -> StatusCode {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::post(format!("/accounts/{account}/deposit")).header("host", "bank");
        if let Some(token) = token {
            request = request.header(headers::TOKEN, token);
        }
        let response = sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
        let status = response.status();
        response.into_body().collect().await.unwrap();
        status
    }

    async fn balance(&self, account: &str) -> i64 {
        let (status, body) = load::get(self.address, &format!("/accounts/{account}")).await.unwrap();
        assert_eq!(status, StatusCode::OK);
        serde_json::from_slice::<serde_json::Value>(&body).unwrap()["balance"].as_i64().unwrap()
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
    let (one, other) = tokio::join!(bank.burst(&["a"], 1, 10), bank.burst(&["b"], 1, 10));
    assert_eq!(one.acknowledged() + other.acknowledged(), 20);
    for name in ["a", "b"] {
        assert_eq!((bank.balance(name).await, bank.account(name).overlaps), (10, 0));
    }
}

#[tokio::test]
async fn fencing_tokens_are_recorded() {
    let bank = Bank::start(0);
    for token in [Some("5"), Some("6"), Some("6"), None, Some("7")] {
        assert_eq!(bank.deposit("a", "", token).await, StatusCode::OK);
    }
    let expected =
        Account { executions: 5, at_once_max: 1, tokens_missing: 1, tokens_not_rising: 1, ..Account::default() };
    assert_eq!(bank.account("a"), expected);
}

#[tokio::test]
async fn the_stats_page_tells_what_the_journal_says() {
    let bank = Bank::start(0);
    bank.burst(&["a"], 1, 3).await;
    let (status, body) = load::get(bank.address, "/stats").await.unwrap();
    let stats: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &stats["a"]["executions"], &stats["a"]["overlaps"]), (StatusCode::OK, &3.into(), &0.into()));
}

#[tokio::test]
async fn requests_that_make_no_sense_change_nothing() {
    let bank = Bank::start(0);
    assert_eq!(bank.deposit("a", r#"{"amount": 5}"#, None).await, StatusCode::OK);
    assert_eq!(bank.deposit("a", r#"{"amount": "lots"}"#, None).await, StatusCode::BAD_REQUEST);
    assert_eq!(bank.deposit("..", "", None).await, StatusCode::BAD_REQUEST);
    assert_eq!(load::get(bank.address, "/accounts/b").await.unwrap().0, StatusCode::NOT_FOUND);
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
