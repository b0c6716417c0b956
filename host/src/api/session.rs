//! One session of the API: a stream of the session protocol inside the process, whose other end are HTTP requests.
//!
//! Every feature of the protocol is here because its own messages go in and out. One task reads what the driver sends
//! and wakes the request that waits for it; requests number what they send while they hold the session's sending end,
//! so that numbers reach the driver in their order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use turnstile_protocol::v1::{self, server_item::Item};

use super::acquire::Asked;
use super::problem::Problem;
use crate::driver::{Backlog, EVENT_ITEMS_MAX, Event, Open, Opened, OutboundStream, Refusal, Share, outbound};
use crate::wire::parse_item;

/// Locks of one session that are waited for, held, or lost and not yet let go: all of them fit into one event.
pub(super) const LOCKS_MAX: usize = EVENT_ITEMS_MAX;

/// A live session; requests share it.
#[derive(Debug)]
pub(super) struct Session {
    opened: Opened,
    events: mpsc::Sender<Event>,
    /// Held while something is numbered and sent.
    sending: tokio::sync::Mutex<Share>,
    state: Mutex<State>,
    chores: mpsc::UnboundedSender<Chore>,
}

/// What the session's own task is still to read.
pub(super) struct Inbound {
    stream: OutboundStream,
    given_up: oneshot::Receiver<()>,
    chores: mpsc::UnboundedReceiver<Chore>,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    last_seq: u64,
    locks: BTreeMap<u64, Lock>,
    /// Heartbeats that are not answered yet.
    heartbeats: BTreeMap<u64, oneshot::Sender<Beat>>,
    draining: bool,
    over: bool,
}

#[derive(Debug)]
enum Lock {
    Waiting(oneshot::Sender<Outcome>),
    Held,
    /// Told by the host; the client has not let go yet.
    Lost(v1::LostReason),
    /// Whoever asked for it is gone, and the host is about to be told.
    Leaving,
}

/// Left to the session's own task.
#[derive(Debug)]
enum Chore {
    /// Take back an acquire whose request is gone.
    Withdraw(u64),
    /// Let everything go, and end.
    End(oneshot::Sender<()>),
}

/// What becomes of an acquire.
#[derive(Debug)]
pub(super) enum Outcome {
    Granted(v1::Grant),
    Rejected(v1::Reject),
    /// Another request took it back.
    Withdrawn,
    /// The session has ended, or the host has.
    Over,
}

/// The answer to a heartbeat.
#[derive(Debug)]
pub(super) struct Beat {
    pub(super) ack: v1::HeartbeatAck,
    /// Locks that were lost, until the client lets go of them.
    pub(super) lost: Vec<(u64, v1::LostReason)>,
    pub(super) draining: bool,
}

/// What became of a release.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Released {
    /// It was held, or waited for, until now.
    Now,
    /// It was lost before; the host now knows that the client let go.
    Lost(v1::LostReason),
    /// It is neither held nor waited for.
    Unknown,
}

impl Session {
    /// Opens a session as a stream would.
    pub(super) async fn open(
        hello: v1::Hello,
        events: mpsc::Sender<Event>,
        backlog: &Backlog,
    ) -> Result<(Arc<Self>, v1::Welcome, Inbound), Problem> {
        let (outbound, mut stream) = outbound();
        let (alive, given_up) = oneshot::channel();
        let (reply, answer) = oneshot::channel();
        let open = Event::Open(Open { hello, outbound, alive, reply });
        events.send(open).await.map_err(|_| Problem::going_away())?;
        let opened = answer.await.map_err(|_| Problem::going_away())?.map_err(|refusal| refused(&refusal))?;
        // A session too many is let in by the driver and put out by the engine, before anything was sent.
        let first = match stream.next().await {
            Some(Ok(message)) => message.items,
            Some(Err(_)) => return Err(Problem::busy("This host has as many sessions as it may have.")),
            None => return Err(Problem::going_away()),
        };
        let mut items = first.into_iter();
        let Some(v1::ServerItem { item: Some(Item::Welcome(welcome)) }) = items.next() else {
            return Err(Problem::internal("The host did not say welcome."));
        };
        let (chores, todo) = mpsc::unbounded_channel();
        let sending = tokio::sync::Mutex::new(backlog.share());
        let session = Arc::new(Self { opened, events, sending, state: Mutex::default(), chores });
        items.for_each(|item| session.hear(item));
        Ok((session, welcome, Inbound { stream, given_up, chores: todo }))
    }

    /// Reads what the driver sends until the session is over.
    pub(super) async fn run(&self, inbound: Inbound) {
        let Inbound { mut stream, mut given_up, mut chores } = inbound;
        let mut done = None;
        loop {
            tokio::select! {
                message = stream.next() => match message {
                    Some(Ok(message)) => message.items.into_iter().for_each(|item| self.hear(item)),
                    Some(Err(_)) | None => break,
                },
                _ = &mut given_up => break,
                Some(chore) = chores.recv() => match chore {
                    Chore::Withdraw(id) => self.withdraw(id).await,
                    Chore::End(reply) => {
                        self.let_go().await;
                        done = Some(reply);
                        break;
                    }
                },
            }
        }
        self.state().end();
        let _ = self.events.send(Event::Closed(self.opened)).await;
        if let Some(reply) = done {
            let _ = reply.send(());
        }
    }

    /// Asks for locks. Whoever drops the waiter before its outcome takes the question back.
    pub(super) async fn acquire(self: &Arc<Self>, asked: Asked) -> Result<Waiter, Problem> {
        let Asked { id, acquire } = asked;
        let (id, outcome) = self
            .send(1, |state| {
                let id = state.next_id(id)?;
                let (sender, outcome) = oneshot::channel();
                state.locks.insert(id, Lock::Waiting(sender));
                Ok(((id, outcome), vec![v1::Acquire { id, ..acquire }.into()]))
            })
            .await?;
        Ok(Waiter { session: Arc::clone(self), id, outcome, settled: false })
    }

    /// Ends a hold, or the wait for it.
    pub(super) async fn release(&self, id: u64, ending: v1::Ending) -> Result<Released, Problem> {
        self.send(1, |state| {
            let release = || v1::Release { id, ending: ending.into() }.into();
            Ok(match state.locks.remove(&id) {
                Some(Lock::Waiting(outcome)) => {
                    let _ = outcome.send(Outcome::Withdrawn);
                    (Released::Now, vec![v1::Cancel { id }.into()])
                }
                Some(Lock::Held) => (Released::Now, vec![release()]),
                Some(Lock::Lost(reason)) => (Released::Lost(reason), vec![release()]),
                Some(Lock::Leaving) => (Released::Now, vec![v1::Cancel { id }.into()]),
                None => (Released::Unknown, Vec::new()),
            })
        })
        .await
    }

    /// Renews the session, and with it all that it holds.
    pub(super) async fn heartbeat(&self, seq: u64) -> Result<Beat, Problem> {
        let answer = self
            .send(1, |state| {
                if seq <= state.last_seq {
                    let detail = "The numbers of heartbeats must grow over the life of a session.";
                    let stale = Problem::new(StatusCode::CONFLICT, "stale-heartbeat", detail);
                    return Err(stale.with("last_seq", state.last_seq));
                }
                state.last_seq = seq;
                let (sender, answer) = oneshot::channel();
                state.heartbeats.insert(seq, sender);
                Ok((answer, vec![v1::Heartbeat { seq }.into()]))
            })
            .await?;
        answer.await.map_err(|_| self.over())
    }

    /// Ends the session: waits are taken back, holds released as unclean. False if it is over already.
    pub(super) async fn end(&self) -> bool {
        let (reply, done) = oneshot::channel();
        self.chores.send(Chore::End(reply)).is_ok() && done.await.is_ok()
    }

    /// Why nothing more is to be had from this session.
    pub(super) fn over(&self) -> Problem {
        if self.events.is_closed() { Problem::going_away() } else { Problem::no_such_session() }
    }

    /// Numbers up to `count` items and sends them, without a point between the two at which the request could vanish.
    async fn send<T>(
        &self,
        count: usize,
        number: impl FnOnce(&mut State) -> Result<(T, Vec<v1::ClientItem>), Problem>,
    ) -> Result<T, Problem> {
        let share = self.sending.lock().await;
        let room = share.room(count).await;
        let place = self.events.reserve().await.map_err(|_| Problem::going_away())?;
        let mut state = self.state();
        if state.over {
            return Err(self.over());
        }
        let (result, items) = number(&mut state)?;
        let parsed = items.into_iter().map(|item| parse_item(self.opened.session, item)).collect::<Result<Vec<_>, _>>();
        let items = parsed.map_err(Problem::internal)?;
        if !items.is_empty() {
            place.send(Event::Items { opened: self.opened, items, room });
        }
        Ok(result)
    }

    fn hear(&self, item: v1::ServerItem) {
        let mut state = self.state();
        match item.item {
            Some(Item::Grant(grant)) => {
                if let Some(lock @ Lock::Waiting(_)) = state.locks.get_mut(&grant.id)
                    && let Lock::Waiting(outcome) = std::mem::replace(lock, Lock::Held)
                {
                    // A waiter that is gone takes it back by itself.
                    let _ = outcome.send(Outcome::Granted(grant));
                }
            }
            Some(Item::Reject(reject)) => {
                if let Some(Lock::Waiting(_)) = state.locks.get(&reject.id)
                    && let Some(Lock::Waiting(outcome)) = state.locks.remove(&reject.id)
                {
                    let _ = outcome.send(Outcome::Rejected(reject));
                }
            }
            Some(Item::Lost(lost)) => {
                if let Some(lock @ Lock::Held) = state.locks.get_mut(&lost.id) {
                    *lock = Lock::Lost(lost.reason());
                }
            }
            Some(Item::HeartbeatAck(ack)) => state.acknowledge(ack),
            Some(Item::GoAway(_)) => state.draining = true,
            Some(Item::Welcome(_)) | None => {}
        }
    }

    async fn withdraw(&self, id: u64) {
        let withdrawn = self.send(1, |state| {
            let left = state.locks.get(&id).is_some_and(|lock| matches!(lock, Lock::Leaving));
            let cancel = if left { vec![v1::Cancel { id }.into()] } else { Vec::new() };
            if left {
                state.locks.remove(&id);
            }
            Ok(((), cancel))
        });
        // Only a host that is going away does not take it.
        let _ = withdrawn.await;
    }

    async fn let_go(&self) {
        let all = self.send(LOCKS_MAX, |state| {
            let locks = std::mem::take(&mut state.locks);
            state.end();
            let let_go = |(id, lock)| match lock {
                Lock::Waiting(_) | Lock::Leaving => v1::Cancel { id }.into(),
                Lock::Held | Lock::Lost(_) => v1::Release { id, ending: v1::Ending::Unclean.into() }.into(),
            };
            Ok(((), locks.into_iter().map(let_go).collect()))
        });
        let _ = all.await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_id(&mut self, asked_for: Option<u64>) -> Result<u64, Problem> {
        let id = asked_for.unwrap_or(self.last_id.saturating_add(1));
        if id <= self.last_id {
            let detail = "The ids of a session's locks must grow.";
            return Err(Problem::new(StatusCode::CONFLICT, "stale-id", detail).with("last_id", self.last_id));
        }
        if self.locks.len() >= LOCKS_MAX {
            return Err(Problem::busy("This session has as many locks as it may have, lost ones not let go included."));
        }
        self.last_id = id;
        Ok(id)
    }

    /// An ack tells that everything sent before it was processed, older heartbeats included.
    fn acknowledge(&mut self, ack: v1::HeartbeatAck) {
        let lost = |(id, lock): (&u64, &Lock)| match lock {
            Lock::Lost(reason) => Some((*id, *reason)),
            _ => None,
        };
        while let Some(heartbeat) = self.heartbeats.first_entry()
            && *heartbeat.key() <= ack.seq
        {
            let lost = self.locks.iter().filter_map(lost).collect();
            let _ = heartbeat.remove().send(Beat { ack, lost, draining: self.draining });
        }
    }

    /// Everybody who waits is told by the end of their channel.
    fn end(&mut self) {
        self.over = true;
        self.locks.clear();
        self.heartbeats.clear();
    }
}

fn refused(refusal: &Refusal) -> Problem {
    match refusal {
        Refusal::NoRandomness => Problem::unavailable("The host has no randomness for a session."),
        Refusal::Version(_) | Refusal::Superseded(_) | Refusal::Malformed(_) => {
            Problem::internal("The host did not take the session.")
        }
    }
}

/// Someone who waits for locks.
#[derive(Debug)]
pub(super) struct Waiter {
    session: Arc<Session>,
    id: u64,
    outcome: oneshot::Receiver<Outcome>,
    settled: bool,
}

impl Waiter {
    /// Waits for the outcome.
    pub(super) async fn outcome(mut self) -> Outcome {
        let outcome = (&mut self.outcome).await.unwrap_or(Outcome::Over);
        self.settled = true;
        outcome
    }
}

impl Drop for Waiter {
    /// The request went away: it waits no more, and what it is granted meanwhile goes back unsent.
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        if let Some(lock) = self.session.state().locks.get_mut(&self.id) {
            *lock = Lock::Leaving;
            let _ = self.session.chores.send(Chore::Withdraw(self.id));
        }
    }
}

#[cfg(test)]
mod tests;
