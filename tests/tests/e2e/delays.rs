//! When the next one is let in, by the host's own clock: at once after a clean end, after the lock delay otherwise.

use std::sync::Arc;
use std::time::{Duration, Instant};

use turnstile_tests::checker::judge;
use turnstile_tests::http::Ask;
use turnstile_tests::session_client::{Session, Want};
use turnstile_tests::wait::{PATIENCE, until};
use turnstile_tests::world::World;

use crate::table::Table;

/// `/clean/...` has a lock delay beyond the test's patience; so whoever comes in came in without it.
const RULES: &[&str] = &[
    "* /clean/{id} key=clean:{id} wait=60s lock_delay=10m",
    "* /unclean/{id} key=unclean:{id} wait=60s lock_delay=1s",
];

async fn granted_at(session: &Session, key: &str) -> Instant {
    let want = Want { key, wait: PATIENCE, lock_delay: Duration::ZERO };
    session.acquire(want).await.unwrap_or_else(|reject| panic!("{key}: {reject:?}"));
    Instant::now()
}

/// Breaks if a lock is quarantined without need, or passed on while the upstream may still be working.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_is_let_in_at_once_or_after_the_lock_delay() {
    let world = Arc::new(World::start(RULES).await);
    let session = Arc::new(world.session().await);
    let mut table = Table::default();
    for (id, behaviour) in [("plain", ""), ("error", "status=500"), ("slow", "body=100; parts=5; pause=50")] {
        let (world, session) = (Arc::clone(&world), Arc::clone(&session));
        table.row(id, async move {
            let holder = Ask::post(&format!("/clean/{id}")).behave(behaviour).spawn(world.proxy());
            world.upstream.began(&format!("/clean/{id}")).await;
            granted_at(&session, &format!("default/clean:{id}")).await;
            holder.await.unwrap().unwrap();
            let end = world.upstream.of_path(&format!("/clean/{id}"))[0].end;
            assert!(end.is_some_and(|end| end <= Instant::now()), "the upstream was done before");
        });
    }
    for (id, behaviour, leaves) in
        [("cut", "delay=100; cut-before-head", false), ("client", "never", true), ("body", "cut-in-body", false)]
    {
        let (world, session) = (Arc::clone(&world), Arc::clone(&session));
        table.row(id, async move {
            let path = format!("/unclean/{id}");
            let holder = Ask::post(&path).behave(behaviour).spawn(world.proxy());
            world.upstream.began(&path).await;
            let key = format!("default/unclean:{id}");
            let waiter = tokio::spawn(async move { granted_at(&session, &key).await });
            let ending = Instant::now();
            if leaves {
                holder.abort();
            }
            let granted = waiter.await.unwrap();
            assert!(granted >= ending + Duration::from_secs(1), "only {:?} after its end", granted - ending);
        });
    }
    table.finish().await;
}

/// Breaks if a hold goes on past its limit, or the next one is let in before it was aborted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hold_limit_ends_a_hold() {
    let world = World::start(&["* /limited/{id} key=limited:{id} wait=60s hold=1s lock_delay=500ms"]).await;
    let session = world.session().await;
    let start = Instant::now();
    let holder = Ask::post("/limited/a").behave("never").spawn(world.proxy());
    world.upstream.began("/limited/a").await;
    let granted = granted_at(&session, "default/limited:a").await;
    assert!(granted >= start + Duration::from_millis(1_500), "only {:?} after its start", granted - start);
    assert_eq!(holder.await.unwrap().unwrap().status, 503);
    let abandoned = world.upstream.executions()[0].abandoned.expect("the holder was aborted");
    assert!(abandoned < granted, "the next one was let in first");
}

/// Breaks if a proxy that is asked to drain cuts off those who hold or wait, instead of serving them to the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_drain_serves_those_who_wait() {
    let world = World::start(RULES).await;
    let session = world.session().await;
    let holder = Ask::post("/clean/a").behave("delay=1000").spawn(world.proxy());
    world.upstream.began("/clean/a").await;
    let waiter = Ask::post("/clean/a").spawn(world.proxy());
    until("the waiter to queue", PATIENCE, async || (session.queue_length("default/clean:a").await == 1).then_some(()))
        .await;
    assert_eq!(world.envoys[0].command("/drain_listeners?graceful").await.status, 200);
    assert_eq!(holder.await.unwrap().unwrap().status, 200);
    assert_eq!(waiter.await.unwrap().unwrap().status, 200);
    judge(&world.upstream.executions()).assert_undisturbed();
}
