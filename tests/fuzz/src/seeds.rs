//! What the fuzzers begin with, where nothing alone would find the way in. As code, so that it keeps step with the
//! protocol; the engine's target needs none.

use std::path::Path;

use prost::Message;
use turnstile_protocol::v1::{
    Acquire, Cancel, ClientItem, ClientMessage, Ending, Heartbeat, Hello, KeyRequest, Mode, Release, Resume, Who,
};

/// Names the directory that a target puts its seeds into before it starts.
const DIRECTORY: &str = "TURNSTILE_FUZZ_SEEDS";

/// Writes the seeds to where the environment says, if it says so.
///
/// # Panics
/// If they cannot be written.
pub fn write(seeds: &[Vec<u8>]) {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    for (number, seed) in seeds.iter().enumerate() {
        let path = Path::new(&directory).join(format!("seed-{number}"));
        std::fs::write(path, seed).expect("the directory of the seeds can be written");
    }
}

/// Messages of a client.
pub fn sessions() -> Vec<Vec<u8>> {
    let who =
        Who { method: "POST".into(), path: "/a".into(), route: "r".into(), request_id: "1".into(), client: "c".into() };
    let modes = [(Mode::Exclusive, 0), (Mode::Shared, 0), (Mode::Limit, 3)];
    let acquire = |id, (mode, limit): (Mode, u32), keys: &[&str]| {
        let keys = keys.iter().map(|key| KeyRequest { key: (*key).into(), mode: mode.into(), limit });
        Acquire { id, keys: keys.collect(), wait_ms: 50, hold_ms: 90, lock_delay_ms: 70, ..Acquire::default() }
    };
    let release = |id, ending: Ending| Release { id, ending: ending.into() };
    let mut messages = Vec::new();
    for mode in modes {
        messages.push(vec![
            acquire(1, mode, &["d/a"]).into(),
            acquire(2, mode, &["d/a", "d/b"]).into(),
            Acquire { wait_ms: 0, queue_max: 1, fail_fast: true, ..acquire(3, mode, &["d/b"]) }.into(),
            release(1, Ending::Clean).into(),
            Heartbeat { seq: 2 }.into(),
            release(2, Ending::Unclean).into(),
            Cancel { id: 3 }.into(),
        ]);
    }
    let exclusive = (Mode::Exclusive, 0);
    messages.push(vec![
        Acquire { reentrant: true, who: Some(who), ..acquire(1, exclusive, &["d/a"]) }.into(),
        Acquire { reentry_secret: vec![7; turnstile_protocol::HOLDER_SECRET_BYTES], ..acquire(2, exclusive, &["d/a"]) }
            .into(),
    ]);
    let resume = Resume {
        incarnation: "0123456789abcdef".into(),
        session_id: 1,
        waiters: vec![acquire(2, exclusive, &["d/a"]), acquire(4, exclusive, &["d/c"])],
        holds: vec![1, 9],
        releases: vec![release(3, Ending::Unsent)],
    };
    messages.push(vec![
        acquire(1, exclusive, &["d/a"]).into(),
        acquire(2, exclusive, &["d/a"]).into(),
        acquire(3, exclusive, &["d/b"]).into(),
        Hello { protocol_version: 1, generation: 2, heartbeat_seq: 3, resume: Some(resume), ..Hello::default() }.into(),
    ]);
    messages.into_iter().map(|items: Vec<ClientItem>| ClientMessage { items }.encode_to_vec()).collect()
}

/// Rules, each with a request.
pub fn rules() -> Vec<Vec<u8>> {
    [
        "POST /accounts/{id}/transfer key=account:{id} wait=5s\n* h.example.com/t/{*rest} key=t:{rest}\n---\n\
         POST h.example.com:80 /accounts/42/transfer?x=1\n",
        "* *.example.com/reports/{*path} key=report:{path} wait=0 hold=10m lock_delay=250ms # words\n---\n\
         GET a.b.example.com /reports/a/%2e%2E/b;c=d/e%2Ff?q\n",
        "POST,PUT /import key=import:{header.x-tenant}:{query.table} on_lost=continue on_host_unavailable=allow name=n\n\
         ---\nput h /import?table=a%20b&other=1\nx-tenant: t\n",
        r#"{"cluster":"turnstile_host","namespace":"ns","rules":["POST /a/{id} key=a:{id}",{"name":"x","match":
        {"host":"h","methods":["GET"],"path":"/b/{c}/{*d}"},"key":"b:{c}/{d}","wait":"5s","hold":"60s",
        "lock_delay":"15s","on_lost":"abort","on_host_unavailable":"deny"}]}
---
GET h /b/1/2/3
"#,
        r#"{"clusters":["turnstile_a","turnstile_b"],"rules":["GET /a key=a"]}
---
GET h /a
"#,
        "POST /move/{from} key=account:{from},account:{query.to},{query.a,b} mode=shared,limit:4,exclusive queue=9 \
         fail_fast=on reentrant=on\n---\nPOST h /move/1?to=1&a,b=%31\n",
        r#"[{"match":{"methods":["*"],"path":"/{x}"},"keys":["a:{x}","b"],"mode":["limit:2","shared"],"queue":"5"}]
---
GET h /1
"#,
        r#"[{"match":{"path":"/a"},"key":"{{literal}}"}]
---
GET h //a/./
"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
