//! When things die, freeze or lose each other, under load: nobody meets anybody, tokens grow, and all of it recovers
//! by itself.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use turnstile_protocol::v1::Ending;
use turnstile_tests::checker::judge;
use turnstile_tests::envoy::Envoy;
use turnstile_tests::host::{Host, HostConfig};
use turnstile_tests::http::Ask;
use turnstile_tests::link::Link;
use turnstile_tests::load::Load;
use turnstile_tests::session_client::{Session, Want};
use turnstile_tests::upstream::Upstream;
use turnstile_tests::wait::{PATIENCE, until};
use turnstile_tests::world::{Plan, World, bootstrap, configuration};

const RULES: &[&str] = &[
    "POST /jobs/{id} key=work:{id} wait=60s hold=30s lock_delay=500ms",
    "POST /careful/{id} key=careful:{id} wait=60s hold=30s lock_delay=1s",
];

const TTL: Duration = Duration::from_millis(2_000);
const HEARTBEAT: Duration = Duration::from_millis(500);
const LEASE: Duration = Duration::from_millis(3_000);

/// More than any load below comes to: they run until they are stopped.
const ENDLESS: usize = 1_000_000;

fn work(number: usize) -> Ask {
    Ask::post(&format!("/jobs/{}", number % 4)).behave("delay=2")
}

/// Good answers so far, by what the upstream has seen.
async fn more_good_ones(upstream: &Upstream, count: usize) {
    let have = upstream.executions().len();
    upstream.saw("more requests", |executions| executions.len() >= have + count).await;
}

/// Breaks if a new host grants what the dead one's holders still believe in, forgets how far tokens had come, or if
/// proxies do not find back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_is_killed_under_load() {
    let mut world = World::start_as(Plan { envoys: 2, ..Plan::of(RULES) }).await;
    let load = Load::start(&world.proxies(), 24, ENDLESS, work);
    for _ in 0..2 {
        more_good_ones(&world.upstream, 200).await;
        world.hosts[0].restart();
    }
    more_good_ones(&world.upstream, 200).await;
    let outcome = load.stop().await;
    assert!(outcome.faults.is_empty(), "nobody is left without an answer: {:?}", outcome.faults);
    let verdict = judge(&world.upstream.executions());
    assert_eq!(verdict.keys, 4);
    verdict.assert_undisturbed();
}

/// Breaks if a frozen host, on waking, goes on granting what another host has taken over, or if a grant that slept in
/// a socket is acted on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_frozen_past_its_lease_while_another_takes_over() {
    let config = HostConfig::default();
    let upstream = Upstream::start().await;
    let first = Host::start(&config).await;
    let second = Host::start_beside(&first, &config).await;
    let mut envoys = Vec::new();
    for host in [&first, &second] {
        let bootstrap = bootstrap(&configuration(RULES), host.sessions, upstream.address);
        envoys.push(Envoy::start(&bootstrap, 2).await);
    }
    let proxies: Vec<_> = envoys.iter().map(|envoy| envoy.listener).collect();
    let load = Load::start(&proxies, 24, ENDLESS, work);
    more_good_ones(&upstream, 100).await;

    // SQLite has one writer at a time: a host that is frozen in the middle of a write stops the others until it wakes.
    first.process.freeze_without_file_locks().await;
    let frozen = Instant::now();
    // The second host has what the first one owned: all four keys go on.
    let have = upstream.executions().len();
    upstream
        .saw("every key taken over", |executions| {
            let since = executions.iter().skip(have).filter(|execution| execution.start > frozen + LEASE);
            since.filter_map(|execution| execution.key()).collect::<std::collections::BTreeSet<_>>().len() == 4
        })
        .await;
    more_good_ones(&upstream, 100).await;
    first.process.thaw();
    more_good_ones(&upstream, 200).await;
    // And the first host serves again.
    until("the first proxy to be served", PATIENCE, async || {
        let answer = Ask::post("/jobs/9").send(proxies[0]).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
    let outcome = load.stop().await;
    assert!(outcome.faults.is_empty(), "nobody is left without an answer: {:?}", outcome.faults);
    judge(&upstream.executions()).assert_undisturbed();
}

/// Breaks if a dead proxy's lock is passed on before its session could have ended, or never (I6).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_killed_while_it_holds() {
    let mut world = World::start(RULES).await;
    let session = world.session().await;
    let holder = Ask::post("/careful/a").behave("never").spawn(world.proxy());
    world.upstream.began("/careful/a").await;
    let killed = Instant::now();
    world.envoys[0].process.kill();
    let want = Want { key: "default/careful:a", wait: PATIENCE, lock_delay: Duration::ZERO };
    session.acquire(want).await.unwrap();
    let waited = killed.elapsed();
    assert!(waited >= TTL - HEARTBEAT + Duration::from_millis(900), "let in after {waited:?}");
    assert!(waited < PATIENCE, "let in after {waited:?}");
    assert!(holder.await.unwrap().is_err());
}

/// Breaks if a frozen proxy keeps its locks for ever, if its waiters are granted what they cannot use and block the
/// others, or if what lay in its sockets is acted on when it wakes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_frozen_past_its_session_under_load() {
    let world = World::start_as(Plan { envoys: 2, ..Plan::of(RULES) }).await;
    let proxies = world.proxies();
    let frozen_load = Load::start(&proxies[..1], 12, ENDLESS, work);
    let load = Load::start(&proxies[1..], 12, ENDLESS, work);
    more_good_ones(&world.upstream, 200).await;
    world.envoys[0].process.freeze().await;
    let (frozen, have) = (Instant::now(), world.upstream.executions().len());
    // Whatever it held is free again after its session and the lock delay: all four keys go on.
    world
        .upstream
        .saw("every key to go on", |executions| {
            let since = executions.iter().skip(have).filter(|execution| execution.start > frozen + TTL * 2);
            since.filter_map(|execution| execution.key()).collect::<std::collections::BTreeSet<_>>().len() == 4
        })
        .await;
    world.envoys[0].process.thaw();
    let before = frozen_load.done();
    frozen_load.reached(before + 200).await;
    let outcome = frozen_load.stop().await;
    assert!(outcome.count(200) > 0 && outcome.statuses.keys().all(|status| [200, 503].contains(status)), "{outcome:?}");
    load.stop().await;
    judge(&world.upstream.executions()).assert_undisturbed();
}

/// Breaks if a moment without network costs a hold or a place in the queue: sessions resume within their TTL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_survives_a_short_cut() {
    let (upstream, host) = (Upstream::start().await, Host::start(&HostConfig::default()).await);
    let link = Link::to(host.sessions).await;
    let envoy = Envoy::start(&bootstrap(&configuration(RULES), link.address, upstream.address), 1).await;
    let session = Session::open(host.sessions, "test").await;

    let holder = Ask::post("/careful/a").behave("delay=1500").spawn(envoy.listener);
    upstream.began("/careful/a").await;
    let waiter = Ask::post("/careful/a").spawn(envoy.listener);
    until("the waiter to queue", PATIENCE, async || {
        (session.queue_length("default/careful:a").await == 1).then_some(())
    })
    .await;
    link.cut();
    assert!(!session.is_free("default/careful:a").await, "a cut frees nothing");
    link.heal();
    assert_eq!(holder.await.unwrap().unwrap().status, 200, "the hold survives");
    assert_eq!(waiter.await.unwrap().unwrap().status, 200, "the waiter keeps its place");
    judge(&upstream.executions()).assert_undisturbed();
}

/// Breaks if a proxy that cannot hear its host lets its request go on beside the next holder's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_network_ends_holds_before_the_next_is_let_in() {
    let (upstream, host) = (Upstream::start().await, Host::start(&HostConfig::default()).await);
    let link = Link::to(host.sessions).await;
    let cut_off = Envoy::start(&bootstrap(&configuration(RULES), link.address, upstream.address), 1).await;
    let well = Envoy::start(&bootstrap(&configuration(RULES), host.sessions, upstream.address), 1).await;

    let holder = Ask::post("/careful/a").behave("never").spawn(cut_off.listener);
    upstream.began("/careful/a").await;
    link.silence();
    let next = Ask::post("/careful/a").send(well.listener).await.unwrap();
    assert_eq!(next.status, 200);
    assert_eq!(holder.await.unwrap().unwrap().status, 503, "it was aborted");
    judge(&upstream.executions()).assert_safe();
    link.heal();
    until("the proxy to be served again", PATIENCE, async || {
        let answer = Ask::post("/careful/a").send(cut_off.listener).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
}

/// Breaks if a drain cuts off holders, does not end, or if the next host waits for a lease that was ended in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_terminated_lets_holds_run_out() {
    let mut world = World::start(RULES).await;
    let holder = Ask::post("/jobs/a").behave("delay=1000").spawn(world.proxy());
    world.upstream.began("/jobs/a").await;
    world.hosts[0].process.signal(Signal::TERM);
    assert_eq!(holder.await.unwrap().unwrap().status, 200, "the hold runs out");
    let status = world.hosts[0].process.ended(PATIENCE).await;
    assert!(status.success(), "{status}");
    world.hosts[0].restart();
    world.hosts[0].ready().await;
    until("requests to be served again", PATIENCE, async || {
        let answer = Ask::post("/jobs/a").send(world.proxy()).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
    let verdict = judge(&world.upstream.executions());
    assert!(verdict.executions >= 2);
    verdict.assert_undisturbed();
}

/// Breaks if a killed host's quarantine is forgotten: the lock delay of a hold outlives the host that granted it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_delay_survives_the_host() {
    let mut host = Host::start(&HostConfig::default()).await;
    let session = Session::open(host.sessions, "before").await;
    let lock_delay = Duration::from_secs(4);
    let want = Want { key: "default/k", wait: PATIENCE, lock_delay };
    let held = session.acquire(want).await.unwrap();
    session.release(&held, Ending::Unclean).await;
    let ended = Instant::now();
    session.settled().await;
    host.restart();
    host.ready().await;
    let session = Session::open(host.sessions, "after").await;
    let granted = session.acquire(Want { key: "default/k", wait: PATIENCE, lock_delay: Duration::ZERO }).await.unwrap();
    assert!(ended.elapsed() >= lock_delay, "granted after {:?}", ended.elapsed());
    assert!(granted.token > held.token, "{} after {}", granted.token, held.token);
}
