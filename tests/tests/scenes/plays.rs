//! What happens to hosts, whatever store they share.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use turnstile_tests::checker::judge;
use turnstile_tests::host::Host;
use turnstile_tests::http::Ask;
use turnstile_tests::load::Load;
use turnstile_tests::scene::{Refusals, Scene, Script, Use};
use turnstile_tests::stage::Routing;
use turnstile_tests::wait::{PATIENCE, until};

/// A host dies, and comes back when its keys have been taken over. Work that outlasts the dead host's promises meets
/// nobody.
pub async fn killed(script: Script) {
    let mut scene = Scene::open(Script { long_keys: 4, ..script }).await;
    let victim = scene.host_of(Use::Long, 0).await;
    scene.strike();
    scene.stage.hosts[victim].process.kill();
    scene.mend();
    scene.recovered().await;
    scene.stage.hosts[victim].restart();
    takes_traffic(&scene.stage.hosts[victim]).await;
    scene.close(Refusals::LostHolds).await.verdict.assert_undisturbed();
}

/// A host dies while all work is short: nobody has to be turned away, as every request has wait left and every hold
/// ends in time. It takes traffic again when it is back.
pub async fn killed_with_short_work(script: Script) {
    let mut scene = Scene::open(script).await;
    let victim = scene.host_of(Use::Hot, 0).await;
    scene.strike();
    scene.stage.hosts[victim].process.kill();
    scene.mend();
    scene.recovered().await;
    scene.stage.hosts[victim].restart();
    takes_traffic(&scene.stage.hosts[victim]).await;
    scene.every_hot_key().await;
    scene.close(Refusals::None).await.verdict.assert_undisturbed();
}

/// A host is frozen until others have its keys, and wakes.
pub async fn frozen(script: Script) {
    let mut scene = Scene::open(Script { long_keys: 4, ..script }).await;
    let victim = scene.host_of(Use::Long, 0).await;
    // SQLite has one writer at a time: a host that is frozen in the middle of a write stops the others until it wakes.
    scene.stage.hosts[victim].process.freeze_without_file_locks().await;
    scene.strike();
    scene.mend();
    scene.recovered().await;
    scene.stage.hosts[victim].process.thaw();
    takes_traffic(&scene.stage.hosts[victim]).await;
    scene.every_hot_key().await;
    scene.close(Refusals::LostHolds).await.verdict.assert_undisturbed();
}

/// No proxy hears a host any more, which keeps its lease; then all is well again.
pub async fn cut_off_from_the_proxies(script: Script) {
    let mut scene = Scene::open(Script { long_keys: 4, ..script }).await;
    let victim = scene.host_of(Use::Long, 0).await;
    scene.strike();
    scene.stage.routes.iter().for_each(|route| route[victim].silence());
    scene.mend();
    scene.recovered().await;
    scene.stage.routes.iter().for_each(|route| route[victim].heal());
    takes_traffic(&scene.stage.hosts[victim]).await;
    scene.every_hot_key().await;
    scene.close(Refusals::LostHolds).await.verdict.assert_undisturbed();
}

/// All hosts are restarted one after the other, as an orchestrator does it: nobody is turned away.
pub async fn rolling_restart(script: Script) {
    let mut scene = Scene::open(script).await;
    scene.strike();
    for number in 0..scene.stage.hosts.len() {
        let host = &mut scene.stage.hosts[number];
        host.process.signal(Signal::TERM);
        let status = host.process.ended(PATIENCE).await;
        assert!(status.success(), "{status}");
        host.restart();
        host.ready().await;
        takes_traffic(&scene.stage.hosts[number]).await;
        scene.every_hot_key().await;
    }
    scene.mend();
    scene.recovered().await;
    scene.close(Refusals::None).await.verdict.assert_undisturbed();
}

/// Waits until a host owns keys.
pub async fn takes_traffic(host: &Host) {
    until("the host to own keys", PATIENCE, async || {
        let answer = Ask::get("/v1/locks?idle=true").send(host.api).await.ok()?;
        let owned = |lock: &serde_json::Value| lock["ownership"] == "owned";
        (answer.status == 200 && answer.json()["locks"].as_array()?.iter().any(owned)).then_some(())
    })
    .await;
}

/// The hosts want the same key all the time, each for a proxy of its own. It goes round in bounded time, and each gets
/// its share.
pub async fn contended(script: Script) {
    let hosts = script.hosts;
    let name = script.name;
    let scene = Scene::set(Script { routing: Routing::Pinned, ..script }).await;
    let of_proxy = |proxy: usize| Ask::post("/hot/a").header(PROXY, &proxy.to_string()).behave("delay=2");
    let proxies = scene.stage.proxies();
    let loads: Vec<Load> = proxies
        .iter()
        .enumerate()
        .map(|(number, proxy)| Load::start(&[*proxy], 6, usize::MAX, move |_| of_proxy(number)))
        .collect();
    // The longest stretch counts from when all of them are there.
    until("every proxy to be served", PATIENCE, async || (grants(&scene).len() == hosts).then_some(())).await;
    scene.more(GRANTS).await;
    for load in loads {
        let outcome = load.stop().await;
        outcome.assert_all_ok(outcome.statuses.values().sum());
    }
    let grants = grants(&scene);
    let all: usize = grants.values().map(Vec::len).sum();
    let shares: Vec<f64> = grants.values().map(|starts| starts.len() as f64 / all as f64).collect();
    let droughts: Vec<Duration> = grants.values().map(|starts| longest_drought(starts)).collect();
    say(&format!("scene | {name:<44} | grants {all} | shares {shares:.2?} | longest without {droughts:.2?}"));
    for (share, drought) in shares.iter().zip(&droughts) {
        // Even shares would be 1 / hosts; the budget of 100 ms or 64 grants is the same for all.
        assert!(*share > 0.5 / hosts as f64, "shares {shares:?}");
        assert!(*drought < BUDGET * 10 * u32::try_from(hosts).expect("few"), "droughts {droughts:?}");
    }
    judge(&scene.stage.upstream.executions()).assert_undisturbed();
}

const PROXY: &str = "x-proxy";
const GRANTS: usize = 800;
/// For how long a host may go on with a key that another one wants, by default.
const BUDGET: Duration = Duration::from_millis(100);

/// When the upstream was reached through each proxy.
fn grants(scene: &Scene) -> BTreeMap<String, Vec<Instant>> {
    let mut grants = BTreeMap::<String, Vec<Instant>>::new();
    scene.stage.upstream.look(0, |execution| {
        let proxy = execution.headers.get(PROXY).and_then(|proxy| proxy.to_str().ok());
        grants.entry(proxy.unwrap_or_default().to_owned()).or_default().push(execution.start);
    });
    grants
}

fn longest_drought(starts: &[Instant]) -> Duration {
    starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

fn say(line: &str) {
    // Not by a macro: the test framework keeps what those print to itself when a test succeeds.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Many requests of two keys each, in both orders, whose keys live at different hosts: none waits for ever.
pub async fn crossing_pairs(script: Script) {
    let name = script.name;
    let scene = Scene::set(script).await;
    let pair = |number: usize| {
        let (one, other) = (number % 5, (number + 1 + number / 5 % 4) % 5);
        Ask::post(&format!("/pair/{one}/{other}")).behave("delay=2")
    };
    let begun = Instant::now();
    let outcome = Load::start(&scene.stage.proxies(), 24, PAIRS, pair).finish().await;
    say(&format!(
        "scene | {name:<44} | requests {PAIRS} | {:.2?} | longest {:.2?}",
        begun.elapsed(),
        outcome.quantile(1.0)
    ));
    outcome.assert_all_ok(PAIRS);
    judge(&scene.stage.upstream.executions()).assert_undisturbed();
}

const PAIRS: usize = 300;

/// Work outlives its hold. Behind a lock delay that covers it, it meets nobody; without one, it does: if the checker
/// could not see that, "no orphan overlaps" would mean nothing.
pub async fn orphaned_work(script: Script) {
    let scene = Scene::set(Script { routing: Routing::Pinned, ..script }).await;
    let (proxies, upstream) = (scene.stage.proxies(), &scene.stage.upstream);
    let ask = |path: &str| Ask::post(path).behave(&format!("delay={}", Use::Long.work().as_millis()));
    let holders = ["/long/a?first", "/bare/a?first"].map(|path| ask(path).spawn(proxies[0]));
    upstream.began("/long/a?first").await;
    upstream.began("/bare/a?first").await;
    scene.stage.routes[0][0].silence();
    let next = ["/long/a?second", "/bare/a?second"].map(|path| ask(path).spawn(proxies[1]));
    for request in next {
        assert_eq!(request.await.unwrap().unwrap().status, 200);
    }
    for holder in holders {
        assert_eq!(holder.await.unwrap().unwrap().status, 503, "it was aborted");
    }
    let verdict = judge(&upstream.executions());
    verdict.assert_safe();
    let orphans: Vec<String> = verdict.orphan_overlaps.iter().map(|fault| format!("{fault:?}")).collect();
    assert!(matches!(&orphans[..], [bare] if bare.contains("/bare/a")), "{orphans:?}");
}
