//! Rules with several keys, with modes and with bounds.

use std::time::Duration;

use turnstile_protocol::v1::Ending;
use turnstile_tests::checker::judge;
use turnstile_tests::http::{Answer, Ask};
use turnstile_tests::load::Load;
use turnstile_tests::session_client::{Granted, Session, Want};
use turnstile_tests::wait::{PATIENCE, until};
use turnstile_tests::world::{Plan, World};

async fn hold(session: &Session, key: &str) -> Granted {
    let want = Want { key, wait: PATIENCE, lock_delay: Duration::ZERO };
    session.acquire(want).await.unwrap_or_else(|reject| panic!("{key}: {reject:?}"))
}

async fn queue_reaches(session: &Session, key: &str, length: u32) {
    let reached = async || (session.queue_length(key).await == length).then_some(());
    until(&format!("{length} to wait for {key}"), PATIENCE, reached).await;
}

fn assert_problem(answer: &Answer, problem: &str) {
    assert_eq!(answer.json()["type"], format!("urn:turnstile:problem:{problem}"), "{answer:?}");
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds >= 1), "{answer:?}");
}

/// Breaks if transfers that cross wait for each other for ever, if one is let in with half of its keys, or if a
/// transfer from an account to itself waits for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_that_cross_all_pass_one_at_a_time() {
    let rules = ["POST /move/{from} key=account:{from},account:{query.to} wait=60s"];
    let world = World::start_as(Plan { envoys: 2, ..Plan::of(&rules) }).await;
    let requests = 1_000;
    let transfer = |number: usize| Ask::post(&format!("/move/{}?to={}", number * 7_919 % 5, number * 104_729 / 5 % 5));
    Load::start(&world.proxies(), 32, requests, transfer).finish().await.assert_all_ok(requests);
    let executions = world.upstream.executions();
    let verdict = judge(&executions);
    assert_eq!((verdict.executions, verdict.keys), (requests, 5));
    verdict.assert_undisturbed();
    for both in [true, false] {
        let like = executions.iter().filter(|execution| (execution.locks().len() == 2) == both).count();
        assert!(like > requests / 10, "{like} transfers with two accounts: {both}");
    }
}

/// Breaks if readers do not share, if a writer is let in beside them, or if a late reader passes the writer that waits.
/// Requests that the upstream never answers end when their clients hang up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_share_and_a_writer_is_alone() {
    let rules =
        ["GET /doc/{who} key=doc mode=shared wait=60s lock_delay=0", "PUT /doc/{who} key=doc wait=60s lock_delay=0"];
    let world = World::start(&rules).await;
    let session = world.session().await;
    let readers: Vec<_> = ["/doc/1", "/doc/2", "/doc/3"]
        .map(|path| Ask::get(path).behave("never").spawn(world.proxy()))
        .into_iter()
        .collect();
    for path in ["/doc/1", "/doc/2", "/doc/3"] {
        world.upstream.began(path).await;
    }
    let writer = Ask::new("PUT", "/doc/writer").behave("delay=50").spawn(world.proxy());
    queue_reaches(&session, "default/doc", 1).await;
    let late = Ask::get("/doc/late").spawn(world.proxy());
    queue_reaches(&session, "default/doc", 2).await;
    assert_eq!(world.upstream.executions().len(), 3, "nobody else is let in");
    readers.iter().for_each(tokio::task::JoinHandle::abort);
    for answer in [writer, late] {
        assert_eq!(answer.await.unwrap().unwrap().status, 200);
    }
    let begun = |path| world.upstream.of_path(path).remove(0);
    let (writer, late) = (begun("/doc/writer"), begun("/doc/late"));
    assert!(writer.end.is_some_and(|end| end <= late.start), "the late reader met the writer");
}

/// Breaks if more than N are let in, or fewer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_as_the_limit_says_are_let_in() {
    let world = World::start(&["POST /bridge/{who} key=bridge mode=limit:2 wait=60s lock_delay=0"]).await;
    let session = world.session().await;
    let mut clients = Vec::new();
    for path in ["/bridge/1", "/bridge/2"] {
        clients.push(Ask::post(path).behave("never").spawn(world.proxy()));
        world.upstream.began(path).await;
    }
    let third = Ask::post("/bridge/3").spawn(world.proxy());
    queue_reaches(&session, "default/bridge", 1).await;
    assert_eq!(world.upstream.executions().len(), 2);
    clients.remove(0).abort();
    assert_eq!(third.await.unwrap().unwrap().status, 200);
    assert!(world.upstream.of_path("/bridge/2")[0].abandoned.is_none(), "beside the second");
}

/// Breaks if a rule's own bound of the queue is not kept, is told late, or is kept for other rules too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_bounds_its_queue() {
    let world = World::start(&["POST /few key=k wait=60s queue=1", "POST /many key=k wait=60s"]).await;
    let session = world.session().await;
    let held = hold(&session, "default/k").await;
    let first = Ask::post("/few").spawn(world.proxy());
    queue_reaches(&session, "default/k", 1).await;
    assert_problem(&Ask::post("/few").send(world.proxy()).await.unwrap(), "queue-full");
    let second = Ask::post("/many").spawn(world.proxy());
    queue_reaches(&session, "default/k", 2).await;
    session.release(&held, Ending::Clean).await;
    for answer in [first, second] {
        assert_eq!(answer.await.unwrap().unwrap().status, 200);
    }
}

/// Breaks if a wait that cannot be long enough is waited out, or one that can is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_would_wait_in_vain_is_told_at_once() {
    let world = World::start(&[
        "POST /slow key=k",
        "POST /short key=k wait=20ms fail_fast=on",
        "POST /long key=k wait=60s fail_fast=on",
    ])
    .await;
    // From this one the host learns how long a hold lasts.
    world.expect_ok(Ask::post("/slow").behave("delay=300")).await;
    let session = world.session().await;
    let held = hold(&session, "default/k").await;
    assert_problem(&Ask::post("/short").send(world.proxy()).await.unwrap(), "wait-hopeless");
    let long = Ask::post("/long").spawn(world.proxy());
    queue_reaches(&session, "default/k", 1).await;
    session.release(&held, Ending::Clean).await;
    assert_eq!(long.await.unwrap().unwrap().status, 200);
    // With nothing in its way there is nothing to wait for.
    let short = async || Ask::post("/short").send(world.proxy()).await.unwrap().status;
    until("the lock to be free", PATIENCE, async || (short().await == 200).then_some(())).await;
}
