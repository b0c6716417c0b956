//! Contenders for locks that share one session of a host: each asks for its next key in the message that releases the
//! last one.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use turnstile_protocol::v1::server_item::Item;
use turnstile_protocol::v1::{Acquire, ClientItem, Ending, Heartbeat, Release};

use crate::session_client::{RawSession, acquire, hello, message};

/// How long a session goes without a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Runs `contenders` on one session, for as long as it is polled. `next_key` says what a contender asks for next, and
/// `granted` is told when one got what it asked for; it is released at once.
///
/// # Errors
/// If the session fails, or a request is not granted.
pub async fn run<Key: AsRef<str>>(
    host: SocketAddr,
    name: &str,
    contenders: usize,
    mut next_key: impl FnMut(usize) -> Key,
    mut granted: impl FnMut(usize, Instant),
) -> Result<Infallible, String> {
    let mut session = RawSession::open(host, message(hello(name))).await.map_err(|status| status.to_string())?;
    // Ids must grow, and tell whose they are.
    let mut turn = 0;
    let mut ask = |contender: usize| {
        turn += 1;
        let id = turn * contenders as u64 + contender as u64;
        Acquire { wait_ms: 60_000, lock_delay_ms: 15_000, ..acquire(id, next_key(contender).as_ref()) }
    };
    session.send_all((0..contenders).map(|contender| ask(contender).into()).collect()).await;
    let (mut beat, mut seq) = (Instant::now(), 1);
    loop {
        let received = session.message().await.map_err(|status| status.to_string())?;
        let now = Instant::now();
        let mut items: Vec<ClientItem> = Vec::with_capacity(2 * received.items.len() + 1);
        for item in received.items {
            match item.item {
                Some(Item::Grant(grant)) => {
                    let contender = usize::try_from(grant.id % contenders as u64).unwrap_or_default();
                    granted(contender, now);
                    items.push(Release { id: grant.id, ending: Ending::Clean.into() }.into());
                    items.push(ask(contender).into());
                }
                Some(Item::Welcome(_) | Item::HeartbeatAck(_)) => {}
                other => return Err(format!("{other:?}")),
            }
        }
        if beat.elapsed() >= HEARTBEAT {
            (beat, seq) = (now, seq + 1);
            items.push(Heartbeat { seq }.into());
        }
        if !items.is_empty() {
            session.send_all(items).await;
        }
    }
}
