//! What reaches the driver from outside, and how much of it may wait or be taken at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{Open, Opened, Question};
use crate::wire;

/// Items of one event at most: larger messages come in several.
pub const EVENT_ITEMS_MAX: usize = 1_024;

/// Items of one stream that may wait for the driver; past them the stream is not read.
const STREAM_ITEMS_MAX: usize = 4 * EVENT_ITEMS_MAX;

/// Items of all streams that may wait for the driver: many streams at their bound, so that few cannot starve the rest.
const WAITING_ITEMS_MAX: usize = 64 * EVENT_ITEMS_MAX;

/// Events taken in one turn at most, so that answers, the store and deadlines are not held back by a flood.
pub(super) const TURN_EVENTS_MAX: usize = 256;

/// No more events are taken in a turn that has this much work to do.
const TURN_WORK_MAX: usize = 4 * EVENT_ITEMS_MAX;

/// What the sessions, or people, tell the driver.
#[derive(Debug)]
pub enum Event {
    /// A stream said Hello.
    Open(Open),
    /// Parsed items of an established stream.
    Items {
        /// The stream's place, from [`Opened`].
        opened: Opened,
        /// In the order of arrival.
        items: Vec<wire::Parsed>,
        /// Free again when they were handled.
        room: Room,
    },
    /// The stream is gone.
    Closed(Opened),
    /// Somebody looks at the locks, or orders something.
    Ask(Question),
    /// Grant no more, and end when nothing is held.
    Drain,
}

impl Event {
    /// How much work it is, in items.
    fn work(&self) -> usize {
        match self {
            Self::Items { items, .. } => 1 + items.len(),
            Self::Open(open) => 1 + open.hello.resume.as_ref().map_or(0, wire::resume_length),
            Self::Ask(question) => 1 + question.work(),
            Self::Closed(_) | Self::Drain => 1,
        }
    }
}

/// Takes what waits, up to a turn's work, behind what is there already.
pub(super) fn take_turn(waiting: &mut mpsc::Receiver<Event>, events: &mut Vec<Event>) {
    let mut work: usize = events.iter().map(Event::work).sum();
    while work < TURN_WORK_MAX && events.len() < TURN_EVENTS_MAX {
        let Ok(event) = waiting.try_recv() else { break };
        work += event.work();
        events.push(event);
    }
}

/// The room for items that wait for the driver; cheap to clone.
#[derive(Clone, Debug)]
pub struct Backlog(Arc<Semaphore>);

/// One stream's share of it: who floods waits for itself.
#[derive(Debug)]
pub struct Share {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// Room that is taken until this is dropped.
#[derive(Debug)]
pub struct Room {
    _own: Option<OwnedSemaphorePermit>,
    _all: Option<OwnedSemaphorePermit>,
}

impl Default for Backlog {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(WAITING_ITEMS_MAX)))
    }
}

impl Backlog {
    /// A share for one more stream.
    pub fn share(&self) -> Share {
        Share { own: Arc::new(Semaphore::new(STREAM_ITEMS_MAX)), all: Arc::clone(&self.0) }
    }
}

impl Share {
    /// Waits for room for that many items, [`EVENT_ITEMS_MAX`] at most.
    pub async fn room(&self, items: usize) -> Room {
        let items = u32::try_from(items.min(EVENT_ITEMS_MAX)).unwrap_or(u32::MAX);
        // They fail only when closed, which nobody does.
        let own = Arc::clone(&self.own).acquire_many_owned(items).await.ok();
        let all = Arc::clone(&self.all).acquire_many_owned(items).await.ok();
        Room { _own: own, _all: all }
    }
}

#[cfg(test)]
mod tests {
    use turnstile_core::{HeartbeatSeq, Input, SessionId};

    use super::*;

    fn items(count: usize, room: Room) -> Event {
        let session = SessionId(1);
        let item = || wire::Parsed::Input(Input::Heartbeat { session, seq: HeartbeatSeq(1) });
        let items = std::iter::repeat_with(item).take(count).collect();
        Event::Items { opened: Opened { session, generation: 1 }, items, room }
    }

    #[tokio::test]
    async fn a_turn_ends_after_so_many_events_or_so_much_work() {
        let (sender, mut waiting) = mpsc::channel(1_000);
        let backlog = Backlog::default();
        for _ in 0..10 {
            let room = backlog.share().room(EVENT_ITEMS_MAX).await;
            sender.send(items(EVENT_ITEMS_MAX, room)).await.unwrap();
        }
        let mut events = Vec::new();
        take_turn(&mut waiting, &mut events);
        assert_eq!(events.len(), 4);
        take_turn(&mut waiting, &mut events);
        assert_eq!(events.len(), 4, "what was taken before counts");
        events.clear();
        while waiting.try_recv().is_ok() {}
        for _ in 0..500 {
            sender.send(Event::Drain).await.unwrap();
        }
        take_turn(&mut waiting, &mut events);
        assert_eq!(events.len(), TURN_EVENTS_MAX);
    }

    #[tokio::test]
    async fn a_flood_waits_for_itself() {
        let backlog = Backlog::default();
        let (flooding, other) = (backlog.share(), backlog.share());
        let mut rooms = Vec::new();
        for _ in 0..STREAM_ITEMS_MAX / EVENT_ITEMS_MAX {
            rooms.push(flooding.room(EVENT_ITEMS_MAX).await);
        }
        {
            let more = flooding.room(1);
            tokio::pin!(more);
            tokio::select! {
                biased;
                _ = &mut more => panic!("its share is used up"),
                _ = other.room(EVENT_ITEMS_MAX) => {}
            }
            rooms.pop();
            more.await;
        }
    }

    #[tokio::test]
    async fn what_waits_is_bounded_over_all_streams() {
        let backlog = Backlog::default();
        let mut rooms = Vec::new();
        for _ in 0..WAITING_ITEMS_MAX / EVENT_ITEMS_MAX {
            rooms.push(backlog.share().room(EVENT_ITEMS_MAX).await);
        }
        assert_eq!(backlog.0.available_permits(), 0);
        rooms.clear();
        assert_eq!(backlog.0.available_permits(), WAITING_ITEMS_MAX);
    }
}
