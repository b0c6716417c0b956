//! Releases by force, their record, and the commands for them.

use std::process::{Command, Output};

use serde_json::{Value, json};
use tokio::io::AsyncBufReadExt;

use crate::bench::{Ask, LONG, Running, lock, within};

fn order(key: &str, lock_delay: &str) -> Value {
    json!({ "key": key, "by": "ann", "reason": "OPS-512: hangs", "lock_delay": lock_delay })
}

async fn lost(running: &Running, session: &str, seq: u64) -> Value {
    running.post(&format!("{session}/heartbeats"), json!({ "seq": seq })).await.expect(200)["lost"].clone()
}

#[tokio::test]
async fn a_forced_release_is_told_recorded_and_waits_for_the_holder() {
    let running = Running::start(LONG).await;
    let (stuck, next) = (running.session().await, running.session().await);
    let held = running.take(&stuck, lock("default/a", "0")).await;
    let waiting = running.ask_for(&next, lock("default/a", "60s"));
    running.until("default/a", "waited for", |key| key["waiter_count"] == 1).await;

    let told = running.post("/v1/release", order("default/a", "skip")).await.expect(200);
    let token = &held["keys"][0]["token"];
    assert_eq!((&told["key"], &told["holders"][0]["token"]), (&json!("default/a"), token));
    assert_eq!((&told["holders"][0]["node"], &told["within_ms"]), (&json!("test"), &json!(60_000)));
    assert_eq!(told["all"], true);
    let seen = running.get("/v1/locks/default/a").await.expect(200);
    assert_eq!(seen["holders"][0]["ending"]["reason"], "forced", "{seen}");
    assert!(!waiting.is_finished(), "the holder may still believe in it");
    assert_eq!(lost(&running, &stuck, 1).await, json!([{ "id": 1, "reason": "forced" }]));
    let problem = running.delete(&format!("{stuck}/locks/1?ending=unclean")).await.problem(404, "no-such-lock");
    assert_eq!(problem["lost"], "forced");
    within(waiting).await.unwrap().expect(200);

    let audit = running.get("/v1/audit").await.expect(200);
    let record = &audit["records"][0];
    assert_eq!((&record["by"], &record["reason"]), (&json!("ann"), &json!("OPS-512: hangs")));
    assert_eq!((&record["key"], &record["lock_delay"]), (&json!("default/a"), &json!("skip")));
    assert_eq!((&record["action"], &record["holders"][0]["token"]), (&json!("force-release"), token));
    assert!(record["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{record}");
    assert!(humantime_like(record["time"].as_str().unwrap()), "{record}");
}

fn humantime_like(time: &str) -> bool {
    time.len() == "2026-01-01T00:00:00.000Z".len() && time.ends_with('Z') && time.as_bytes()[10] == b'T'
}

#[tokio::test]
async fn the_lock_delay_is_kept_unless_it_is_skipped() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    running.take(&session, lock("default/a", "0")).await;
    let mut keep = order("default/a", "keep");
    keep.as_object_mut().unwrap().remove("lock_delay");
    running.post("/v1/release", keep).await.expect(200);
    running.delete(&format!("{session}/locks/1?ending=unclean")).await.problem(404, "no-such-lock");
    running.post(&format!("{session}/locks"), lock("default/a", "0")).await.problem(423, "locked");
    // A quarantine alone can be lifted as well, if that is what was asked for.
    running.post("/v1/release", order("default/a", "keep")).await.problem(404, "no-such-lock");
    let told = running.post("/v1/release", order("default/a", "skip")).await.expect(200);
    assert_eq!((&told["holders"], &told["within_ms"]), (&json!([]), &json!(0)));
    running.take(&session, lock("default/a", "0")).await;
    assert_eq!(running.get("/v1/audit").await.expect(200)["records"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn one_hold_of_several_is_named_by_its_token() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    let shared = || json!({ "keys": [{ "key": "default/a", "mode": "shared" }], "wait": "0" });
    let mut tokens = Vec::new();
    for _ in 0..3 {
        tokens.push(running.take(&session, shared()).await["keys"][0]["token"].clone());
    }
    let mut one = order("default/a", "keep");
    one["token"] = tokens[1].clone();
    let told = running.post("/v1/release", one.clone()).await.expect(200);
    assert_eq!((told["holders"].as_array().unwrap().len(), &told["holders"][0]["token"]), (1, &tokens[1]));
    assert_eq!(lost(&running, &session, 1).await, json!([{ "id": 2, "reason": "forced" }]));
    running.delete(&format!("{session}/locks/2")).await.problem(404, "no-such-lock");
    running.post("/v1/release", one).await.problem(404, "no-such-lock");
    let told = running.post("/v1/release", order("default/a", "skip")).await.expect(200);
    assert_eq!(told["holders"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn an_order_without_name_or_reason_is_refused_and_changes_nothing() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    running.take(&session, lock("default/a", "0")).await;
    let places = |problem: Value| {
        let faults = problem["faults"].as_array().unwrap().iter();
        faults.map(|fault| fault["at"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let refused = running.post("/v1/release", json!({ "key": "default/a" })).await;
    assert_eq!(places(refused.problem(400, "malformed-request")), ["by", "reason"]);
    for (name, value) in [
        ("by", json!("")),
        ("by", json!("  ")),
        ("by", json!("x".repeat(129))),
        ("by", json!("ann\n{}")),
        ("reason", json!("x".repeat(1_025))),
        ("reason", json!("\u{1b}[2J")),
        ("key", json!("white space")),
        ("token", Value::Null),
        ("token", json!("7")),
        ("token", json!(1_u64 << 63)),
        ("lock_delay", json!("none")),
        ("force", json!(true)),
    ] {
        let mut order = order("default/a", "keep");
        order[name] = value;
        let refused = running.post("/v1/release", order).await;
        assert_eq!(places(refused.problem(400, "malformed-request")), [name]);
    }
    assert_eq!(lost(&running, &session, 1).await, json!([]));
    running.post("/v1/release", order("default/b", "skip")).await.problem(404, "no-such-lock");
    assert_eq!(running.get("/v1/audit").await.expect(200), json!({ "records": [] }));
    running.get("/v1/audit?since=1").await.problem(400, "malformed-request");
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_carried_out() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("audit.log");
    let running = Running::start(&format!("{LONG}[api]\naudit_file = {file:?}")).await;
    let session = running.session().await;
    running.take(&session, lock("default/a", "0")).await;
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    running.post("/v1/release", order("default/a", "skip")).await.problem(503, "no-audit");
    assert_eq!(lost(&running, &session, 1).await, json!([]));
    assert_eq!(running.get("/v1/audit").await.expect(200), json!({ "records": [] }));

    std::fs::remove_dir(&file).unwrap();
    running.post("/v1/release", order("default/a", "skip")).await.expect(200);
    let text = std::fs::read_to_string(&file).unwrap();
    let record: Value = serde_json::from_str(&text).unwrap();
    assert!(text.ends_with('\n'));
    assert_eq!(running.get("/v1/audit").await.expect(200)["records"], json!([record]));
}

#[tokio::test]
async fn nobody_skips_the_lock_delay_of_a_host_that_died() {
    let directory = tempfile::TempDir::new().unwrap();
    let short = "[sessions]\nttl = \"2s\"\n[store]\nlease_ttl = \"2s\"\n";
    let config = directory.path().join("turnstile.toml");
    std::fs::write(&config, short).unwrap();
    let database = directory.path().join("locks.db");
    let mut host = tokio::process::Command::new(env!("CARGO_BIN_EXE_turnstile"));
    host.args(["host", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", "--api-listen=127.0.0.1:0"]);
    host.arg("--config").arg(&config).arg("--database").arg(&database);
    let mut host = host.stderr(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut log = tokio::io::BufReader::new(host.stderr.take().unwrap()).lines();
    let api = loop {
        let line = within(log.next_line()).await.unwrap().expect("it says where it listens");
        if let Some((_, rest)) = line.split_once("api_address=") {
            break rest.split(' ').next().unwrap().parse().unwrap();
        }
    };
    let session = Ask::post("/v1/sessions", json!({})).send(api).await.expect(201);
    let locks = format!("/v1/sessions/{}/locks", session["session"].as_str().unwrap());
    Ask::post(&locks, lock("default/a", "20s")).send(api).await.expect(200);
    within(host.kill()).await.unwrap();

    let running = Running::start_on(short, directory).await;
    let session = running.session().await;
    let beating = running.beat(&session);
    let waiting = running.ask_for(&session, lock("default/a", "60s"));
    running.until("default/a", "in quarantine", |key| key["quarantined_for_ms"].as_u64() > Some(30_000)).await;
    running.post("/v1/release", order("default/a", "skip")).await.problem(409, "quarantine");
    assert!(!waiting.is_finished() && !beating.is_finished());
    waiting.abort();
    beating.abort();
}

fn turnstile(running: &Running, command: &str, args: &[&str]) -> Output {
    let url = format!("http://{}", running.api);
    let mut turnstile = Command::new(env!("CARGO_BIN_EXE_turnstile"));
    turnstile.args([command, "--api", &url]).args(args).output().unwrap()
}

fn text(output: &[u8]) -> &str {
    std::str::from_utf8(output).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_show_locks_and_release_them() {
    let running = Running::start(LONG).await;
    let session = running.session().await;
    let held = running.take(&session, lock("default/a", "0")).await;
    let kept = running.take(&session, lock("default/b", "0")).await;
    let token = held["keys"][0]["token"].to_string();
    let shown = turnstile(&running, "locks", &["default/a"]);
    let seen = text(&shown.stdout);
    assert!(
        shown.status.success() && seen.starts_with("default/a: owned, 1 held, 0 waiting\n  held by test/"),
        "{shown:?}"
    );
    assert!(seen.contains(&format!("exclusive, token {token}, ")) && !seen.contains("default/b"), "{seen}");

    let by = ["--by", "ann", "--reason", "OPS-512"];
    let told = turnstile(&running, "release", &[&["--key", "default/a", "--token", &token], &by[..]].concat());
    assert!(told.status.success(), "{told:?}");
    assert!(text(&told.stdout).starts_with("told test/") && text(&told.stdout).contains("within 60.0s"), "{told:?}");
    assert_eq!(lost(&running, &session, 1).await, json!([{ "id": 1, "reason": "forced" }]));
    let shown = turnstile(&running, "locks", &[]);
    assert!(text(&shown.stdout).contains("ending (forced) within "), "{shown:?}");
    running.delete(&format!("{session}/locks/1?ending=unclean")).await.problem(404, "no-such-lock");
    let told = turnstile(&running, "release", &[&["--key", "default/a", "--skip-lock-delay"], &by[..]].concat());
    assert_eq!(text(&told.stdout), "nobody held it; its quarantine is lifted\n");
    running.delete(&format!("{session}/locks/{}", kept["id"])).await.expect(204);
    assert_eq!(text(&turnstile(&running, "locks", &[]).stdout), "");
    let idle = turnstile(&running, "locks", &["--all", "default/"]);
    assert_eq!(text(&idle.stdout).lines().count(), 2, "{idle:?}");

    let refused = turnstile(&running, "release", &[&["--key", "default/a"], &by[..]].concat());
    assert_eq!(
        (refused.status.code(), text(&refused.stderr)),
        (Some(1), "turnstile: refused (404): Nobody holds this key here.\n")
    );
    for wrong in [&["--key", "default/a", "--by", "ann"][..], &["--api", "127.0.0.1:7880"]] {
        assert_eq!(turnstile(&running, "release", wrong).status.code(), Some(64));
    }
    running.stop.send(()).unwrap();
    within(running.stopped).await.unwrap();
    let command = Command::new(env!("CARGO_BIN_EXE_turnstile")).args(["locks", "--api", "http://127.0.0.1:9"]).output();
    let unreachable = command.unwrap();
    assert_eq!(unreachable.status.code(), Some(1));
    assert!(text(&unreachable.stderr).contains("no answer from http://127.0.0.1:9"), "{unreachable:?}");
}
