//! Whose turn it is: first come, first served, and those who give up leave the queue.

use std::time::Duration;

use turnstile_protocol::v1::Ending;
use turnstile_tests::checker::judge;
use turnstile_tests::http::Ask;
use turnstile_tests::session_client::Want;
use turnstile_tests::wait::{PATIENCE, until};
use turnstile_tests::world::World;

const RULES: &[&str] = &["POST /turn/{who} key=turn wait=60s"];

/// Breaks if the queue is not in order of arrival, or somebody who left it still takes a turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_let_in_in_the_order_they_came() {
    let world = World::start(RULES).await;
    let session = world.session().await;
    let want = Want { key: "default/turn", wait: PATIENCE, lock_delay: Duration::ZERO };
    let held = session.acquire(want).await.unwrap();
    let mut clients = Vec::new();
    for who in 0..8 {
        clients.push(Ask::post(&format!("/turn/{who}")).spawn(world.proxy()));
        // The next one comes when this one is in the queue.
        let queued = async || session.queue_length("default/turn").await > who;
        until("the request to queue", PATIENCE, async || queued().await.then_some(())).await;
    }
    for leaver in [2, 5] {
        clients[leaver].abort();
    }
    until("the leavers to be gone", PATIENCE, async || (session.queue_length("default/turn").await == 6).then_some(()))
        .await;
    session.release(&held, Ending::Clean).await;
    for (who, client) in clients.into_iter().enumerate().filter(|(who, _)| ![2, 5].contains(who)) {
        assert_eq!(client.await.unwrap().unwrap().status, 200, "{who}");
    }
    let executions = world.upstream.executions();
    let order: Vec<&str> = executions.iter().map(|execution| execution.path.trim_start_matches("/turn/")).collect();
    assert_eq!(order, ["0", "1", "3", "4", "6", "7"]);
    judge(&executions).assert_undisturbed();
}
