//! The host's port, and those who do not keep to the protocol: refused one by one, while everybody else goes on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use turnstile_protocol::v1::{
    Acquire, ClientItem, ClientMessage, Heartbeat, Hello, KeyRequest, Mode, RejectReason, Release, Resume,
    server_item::Item,
};
use turnstile_protocol::{METHOD, SERVICE, VERSION};
use turnstile_tests::host::{Host, HostConfig};
use turnstile_tests::http::Connection;
use turnstile_tests::session_client::{RawSession, Session, Want, acquire, hello, message};
use turnstile_tests::wait::PATIENCE;

use crate::table::Table;

/// A host, and a session that holds a lock and must not notice anything.
struct Bystander {
    host: Host,
    session: Session,
}

impl Bystander {
    async fn start(config: &HostConfig) -> Self {
        let host = Host::start(config).await;
        let session = Session::open(host.sessions, "bystander").await;
        let want = Want { key: "default/bystander", wait: PATIENCE, lock_delay: Duration::ZERO };
        session.acquire(want).await.unwrap();
        Self { host, session }
    }

    async fn assert_unharmed(mut self) {
        assert!(self.host.process.is_running(), "the host died");
        assert!(self.host.probe("/live").await && self.host.probe("/ready").await);
        assert!(self.session.ended().is_none(), "a bystander's session was ended: {:?}", self.session.ended());
        assert!(!self.session.is_free("default/bystander").await, "a bystander lost its lock");
        let other = Session::open(self.host.sessions, "newcomer").await;
        assert!(other.is_free("default/other").await);
        assert!(!self.host.process.output().contains("panicked"), "{}", self.host.process.output());
    }
}

/// The host's verdict on a stream that begins with `first` and goes on with `then`.
async fn verdict(host: SocketAddr, first: ClientMessage, then: Vec<ClientItem>) -> Code {
    match RawSession::open(host, first).await {
        Ok(mut raw) => {
            for item in then {
                raw.send(item).await;
            }
            raw.verdict().await.code()
        }
        Err(status) => status.code(),
    }
}

/// Breaks if a client can speak out of turn, and the host goes on as if it understood.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_break_the_protocol_are_ended() {
    let bystander = Bystander::start(&HostConfig::default()).await;
    let host = bystander.host.sessions;
    let version = |protocol_version| message(Hello { protocol_version, ..hello("x") });
    let both = ClientMessage { items: vec![hello("x").into(), hello("x").into()] };
    let nothing = ClientItem { item: None };
    let rows: Vec<(&str, ClientMessage, Vec<ClientItem>, Code)> = vec![
        ("version 0", version(0), vec![], Code::FailedPrecondition),
        ("a version to come", version(VERSION + 1), vec![], Code::FailedPrecondition),
        ("no version ever", version(u32::MAX), vec![], Code::FailedPrecondition),
        ("an Acquire first", message(acquire(1, "default/a")), vec![], Code::InvalidArgument),
        ("a Heartbeat first", message(Heartbeat { seq: 1 }), vec![], Code::InvalidArgument),
        ("a Release first", message(Release { id: 1, ending: 1 }), vec![], Code::InvalidArgument),
        ("an empty item first", message(nothing.clone()), vec![], Code::InvalidArgument),
        ("two Hellos at once", both, vec![], Code::InvalidArgument),
        ("a second Hello", message(hello("x")), vec![hello("x").into()], Code::InvalidArgument),
        ("an empty item", message(hello("x")), vec![nothing], Code::InvalidArgument),
    ];
    let mut table = Table::default();
    for (name, first, then, code) in rows {
        table.row(name, async move { assert_eq!(verdict(host, first, then).await, code) });
    }
    table.finish().await;
    bystander.assert_unharmed().await;
}

/// Breaks if a faulty request is granted, or ends more than itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faulty_requests_are_rejected_one_by_one() {
    let bystander = Bystander::start(&HostConfig::default()).await;
    let mut raw = RawSession::open(bystander.host.sessions, message(hello("x"))).await.unwrap();
    let Ok(Item::Welcome(_)) = raw.next().await else { panic!("no Welcome") };
    let with = |id, mode: i32, limit| Acquire {
        keys: vec![KeyRequest { key: "default/a".to_owned(), mode, limit }],
        ..acquire(id, "")
    };
    let several = |id, keys: &[&str]| Acquire {
        keys: keys.iter().flat_map(|key| acquire(id, key).keys).collect(),
        ..acquire(id, "")
    };
    let (invalid, not_joined) = (RejectReason::Invalid, RejectReason::NoSuchHold);
    let rows = [
        ("no key", several(1, &[]), invalid),
        ("an empty key", acquire(2, ""), invalid),
        ("a space", acquire(3, "default/a b"), invalid),
        ("a newline", acquire(4, "default/a\n"), invalid),
        ("no ASCII", acquire(5, "default/ä"), invalid),
        ("too long", acquire(6, &format!("default/{}", "a".repeat(600))), invalid),
        ("no mode", with(7, 0, 0), invalid),
        ("an unknown mode", with(8, 77, 0), invalid),
        ("shared by some", with(9, Mode::Shared.into(), 4), invalid),
        ("a limit of none", with(10, Mode::Limit.into(), 0), invalid),
        ("a limit beyond all limits", with(11, Mode::Limit.into(), 65_536), invalid),
        ("a key twice", several(12, &["default/a", "default/b", "default/a"]), invalid),
        ("too many keys", several(13, &["default/a"; 17]), invalid),
        ("one bad key of two", several(14, &["default/a", ""]), invalid),
        ("half a secret", Acquire { reentry_secret: vec![1; 12], ..acquire(15, "default/a") }, not_joined),
        ("a guessed secret", Acquire { reentry_secret: vec![1; 24], ..acquire(16, "default/a") }, not_joined),
    ];
    for (name, request, reason) in rows {
        let id = request.id;
        raw.send(request).await;
        let answer = loop {
            match raw.next().await.unwrap_or_else(|status| panic!("{name} ended the stream: {status}")) {
                Item::HeartbeatAck(_) => {}
                item => break item,
            }
        };
        let Item::Reject(reject) = answer else { panic!("{name}: {answer:?}") };
        assert!(reject.id == id && reject.reason() == reason, "{name}: {reject:?}");
    }
    // An id that was used before, whatever becomes of it, is no second lock; and endings of nothing end nothing.
    raw.send(Release { id: 999, ending: 1 }).await;
    raw.send(acquire(20, "default/mine")).await;
    let granted = raw.next().await;
    assert!(matches!(&granted, Ok(Item::Grant(grant)) if grant.id == 20), "{granted:?}");
    bystander.assert_unharmed().await;
}

/// Breaks if bytes that are no protocol at all do harm: in gRPC frames, in HTTP/2, or on the bare connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_refused() {
    let bystander = Bystander::start(&HostConfig::default()).await;
    let host = bystander.host.sessions;
    let mut table = Table::default();
    let frame = |length: u32, body: &[u8]| [&[0][..], &length.to_be_bytes(), body].concat();
    let huge = ClientMessage { items: vec![Hello { node: "n".repeat(3 << 20), ..hello("") }.into()] };
    let huge = prost::Message::encode_to_vec(&huge);
    for (name, body) in [
        ("no protobuf", frame(5, b"\xff\xff\xff\xff\xff")),
        ("a length that lies", frame(u32::MAX, b"short")),
        ("a message past the limit", frame(huge.len() as u32, &huge)),
        ("a frame cut short", frame(100, b"short")),
        ("a compressed frame", [&[1][..], &5u32.to_be_bytes(), b"12345"].concat()),
        ("an empty body", vec![]),
    ] {
        table.row(name, async move {
            let status = grpc_status(host, body).await;
            assert!(!matches!(status.as_deref(), None | Some("0")), "{name}: {status:?}");
        });
    }
    for (name, bytes) in [
        ("HTTP/1", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec()),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("noise", (0..4096u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect()),
        ("half a preface", b"PRI * HTTP/2.0\r\n\r\nSM".to_vec()),
    ] {
        table.row(name, async move {
            let mut stream = TcpStream::connect(host).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            stream.shutdown().await.unwrap();
            let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
            assert!(closed.is_ok(), "the host keeps the connection");
        });
    }
    table.finish().await;
    bystander.assert_unharmed().await;
}

async fn grpc_status(host: SocketAddr, body: Vec<u8>) -> Option<String> {
    let mut connection = Connection::open_http2(host).await.unwrap();
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed();
    let request = Request::post(format!("http://{host}/{SERVICE}/{METHOD}")).header("te", "trailers");
    let request = request.header("content-type", "application/grpc").body(body).unwrap();
    // A stream that is reset is refused as well as one that is answered.
    let Ok(response) = connection.start(request).await else { return Some("reset".to_owned()) };
    let text = |headers: &hyper::HeaderMap| headers.get("grpc-status").map(|value| value.to_str().unwrap().to_owned());
    match text(response.headers()) {
        Some(status) => Some(status),
        None => match response.into_body().collect().await {
            Ok(body) => body.trailers().and_then(text),
            Err(_) => Some("reset".to_owned()),
        },
    }
}

/// Breaks if connections that say nothing keep others out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_are_in_nobodys_way() {
    let bystander = Bystander::start(&HostConfig::default()).await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(bystander.host.sessions).await.unwrap());
    }
    bystander.assert_unharmed().await;
}

/// Breaks if sessions, or what one session may ask at once, are without bound (I7).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_are_kept_with_a_clear_answer() {
    let more = "[limits]\nsessions = 4\nwaiters_per_session = 5\nkeys = 20".to_owned();
    let bystander = Bystander::start(&HostConfig { more, ..HostConfig::default() }).await;
    let host = bystander.host.sessions;
    let session = Arc::new(Session::open(host, "greedy").await);
    fn want(key: &str) -> Want<'_> {
        Want { key, wait: Duration::from_secs(3), lock_delay: Duration::ZERO }
    }
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let session = Arc::clone(&session);
        waiting.push(tokio::spawn(async move { session.acquire(want("default/bystander")).await }));
    }
    let mut reasons = Vec::new();
    for waiter in waiting {
        reasons.push(waiter.await.unwrap().expect_err("it is held").reason());
    }
    reasons.sort_unstable();
    assert_eq!(reasons, [[RejectReason::WaitTimeout; 5].as_slice(), &[RejectReason::SessionFull; 3]].concat());

    let mut full = 0;
    for number in 0..40 {
        match session.acquire(want(&format!("default/key-{number}"))).await {
            Ok(_) => {}
            Err(reject) => {
                assert_eq!(reject.reason(), RejectReason::KeysFull);
                full += 1;
            }
        }
    }
    assert_eq!(full, 21, "twenty keys and no more, the bystander's among them");

    let mut others = Vec::new();
    for number in 0..4 {
        others.push(RawSession::open(host, message(hello(&format!("crowd-{number}")))).await);
    }
    let mut refused = 0;
    for other in others.iter_mut() {
        match other {
            Ok(raw) => match raw.next().await {
                Ok(Item::Welcome(_)) => {}
                Ok(item) => panic!("{item:?}"),
                Err(status) => refused += usize::from(status.code() == Code::ResourceExhausted),
            },
            Err(status) => refused += usize::from(status.code() == Code::ResourceExhausted),
        }
    }
    assert_eq!(refused, 2, "four sessions and no more: the bystander's, the greedy one's, and two of the crowd");
}

/// Breaks if the name of a session is enough to take it over, or to end its holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_not_resumed_by_guessing() {
    let bystander = Bystander::start(&HostConfig::default()).await;
    let incarnation = bystander.session.welcome().incarnation.clone();
    let session_id = bystander.session.welcome().session_id;
    for (incarnation, session_id) in
        [(incarnation.clone(), session_id.wrapping_add(1)), (incarnation, 0), ("another".to_owned(), session_id)]
    {
        let resume = Resume { incarnation, session_id, holds: vec![1], ..Resume::default() };
        let first = message(Hello { generation: 2, heartbeat_seq: 9, resume: Some(resume), ..hello("thief") });
        let mut raw = RawSession::open(bystander.host.sessions, first).await.unwrap();
        let Ok(Item::Welcome(welcome)) = raw.next().await else { panic!("no Welcome") };
        assert!(!welcome.resumed, "{session_id}");
    }
    bystander.assert_unharmed().await;
}

/// Breaks if a client that asks and does not read fills the host's memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_bounded() {
    let bystander = Bystander::start(&HostConfig::default()).await;
    let raw = RawSession::open(bystander.host.sessions, message(hello("deaf"))).await.unwrap();
    let before = bystander.host.process.resident_bytes();
    let flood = async {
        for id in (1..).step_by(1_000).take(400) {
            let tries = (id..id + 1_000).map(|id| acquire(id, "default/bystander").into()).collect();
            raw.send_all(tries).await;
        }
    };
    // A host that stops reading, or ends the stream, is as good as one that answers all.
    let _ = tokio::time::timeout(Duration::from_secs(4), flood).await;
    let grown = bystander.host.process.resident_bytes().saturating_sub(before);
    assert!(grown < 200 << 20, "400,000 unread answers took {grown} bytes");
    bystander.assert_unharmed().await;
}
