//! Scenes on one SQLite file: hosts die, freeze, and lose their proxies.

use rustix::process::Signal;
use turnstile_tests::scene::{Refusals, Scene, Script};
use turnstile_tests::stage::Routing;
use turnstile_tests::wait::PATIENCE;

/// Breaks if a dead host's keys are given out too early, or never.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_killed() {
    let script = Script { long_keys: 2, routing: Routing::Pinned, ..Script::new("host killed, SQLite") };
    let mut scene = Scene::open(script).await;
    scene.strike();
    scene.stage.hosts[0].process.kill();
    scene.mend();
    scene.stage.hosts[0].restart();
    scene.recovered().await;
    scene.close(Refusals::Some).await.verdict.assert_undisturbed();
}
