//! The port for proxies: one task a stream, which parses what arrives and hands it to the driver.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use turnstile_core::SessionId;
use turnstile_protocol::v1;
use turnstile_protocol::v1::client_item::Item;
use turnstile_protocol::v1::lock_service_server::{LockService, LockServiceServer};
use turnstile_protocol::{ITEMS_PER_MESSAGE_MAX, MESSAGE_MAX_BYTES};

use crate::driver::{
    Backlog, EVENT_ITEMS_MAX, Event, Open, Opened, Outbound, OutboundStream, Refusal, Share, outbound,
};
use crate::wire::{Parsed, parse_item};

/// A stream that has not said Hello by then is closed.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

/// The gRPC service; cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions {
    events: mpsc::Sender<Event>,
    backlog: Backlog,
}

impl Sessions {
    /// A service that hands everything to the driver at the other end of `events`, as far as `backlog` has room.
    pub fn new(events: mpsc::Sender<Event>, backlog: Backlog) -> LockServiceServer<Self> {
        LockServiceServer::new(Self { events, backlog }).max_decoding_message_size(MESSAGE_MAX_BYTES)
    }
}

#[tonic::async_trait]
impl LockService for Sessions {
    type SessionStream = OutboundStream;

    async fn session(
        &self,
        request: Request<Streaming<v1::ClientMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbound, stream) = outbound();
        let events = self.events.clone();
        let share = self.backlog.share();
        // The response must start before the first message of the client is awaited: some clients wait for it.
        tokio::spawn(async move {
            if let Err(status) = serve(request.into_inner(), outbound.clone(), events, share).await {
                tracing::warn!(code = ?status.code(), reason = status.message(), "a session stream is refused");
                outbound.fail(status);
            }
        });
        Ok(Response::new(stream))
    }
}

async fn serve(
    mut inbound: Streaming<v1::ClientMessage>,
    outbound: Outbound,
    events: mpsc::Sender<Event>,
    share: Share,
) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO_PATIENCE, inbound.message())
        .await
        .map_err(|_| Status::invalid_argument("no Hello within 5 seconds"))??;
    let mut items = counted(first.unwrap_or_default())?.into_iter();
    let Some(v1::ClientItem { item: Some(Item::Hello(hello)) }) = items.next() else {
        return Err(Status::invalid_argument("the first item of a session stream must be a Hello"));
    };
    let (alive, mut given_up) = oneshot::channel();
    let opened = open(hello, outbound, alive, &events).await?;
    let forwarder = Forwarder { opened, events: &events, share };
    let result = tokio::select! {
        result = forwarder.run(&mut inbound, items.collect()) => result,
        _ = &mut given_up => Ok(()),
    };
    let _ = events.send(Event::Closed(opened)).await;
    result
}

async fn open(
    hello: v1::Hello,
    outbound: Outbound,
    alive: oneshot::Sender<()>,
    events: &mpsc::Sender<Event>,
) -> Result<Opened, Status> {
    let (reply, answer) = oneshot::channel();
    let (node, worker) = (hello.node.clone(), hello.worker.clone());
    let gone = |_| Status::unavailable("the host is shutting down");
    events.send(Event::Open(Open { hello, outbound, alive, reply })).await.map_err(|_| gone(()))?;
    let opened = answer.await.map_err(|_| gone(()))?.map_err(refused)?;
    tracing::info!(session = opened.session.0, generation = opened.generation, node, worker, "session stream opened");
    Ok(opened)
}

fn refused(refusal: Refusal) -> Status {
    let message = refusal.to_string();
    match refusal {
        Refusal::Version(_) => Status::failed_precondition(message),
        Refusal::Superseded(_) => Status::aborted(message),
        Refusal::Malformed(_) => Status::invalid_argument(message),
        Refusal::NoRandomness => Status::internal(message),
    }
}

/// Hands the items of an established stream to the driver.
struct Forwarder<'a> {
    opened: Opened,
    events: &'a mpsc::Sender<Event>,
    share: Share,
}

impl Forwarder<'_> {
    async fn run(&self, inbound: &mut Streaming<v1::ClientMessage>, first: Vec<v1::ClientItem>) -> Result<(), Status> {
        let (mut received, mut end) = (first, None);
        loop {
            self.hand_over(std::mem::take(&mut received)).await?;
            match end {
                None => end = receive(inbound, &mut received).await,
                Some(Err(status)) if is_protocol_fault(&status) => return Err(status),
                // A broken transport is no fault to report to anybody: the session is suspended and may resume.
                Some(_) => return Ok(()),
            }
        }
    }

    /// In several events, each as soon as there is room for it.
    async fn hand_over(&self, items: Vec<v1::ClientItem>) -> Result<(), Status> {
        let mut items = items.into_iter();
        if items.len() == 0 {
            // Messages without items must not keep others from running.
            tokio::task::yield_now().await;
        }
        while items.len() > 0 {
            let room = self.share.room(items.len()).await;
            let (items, violation) = parse(self.opened.session, items.by_ref().take(EVENT_ITEMS_MAX));
            let event = Event::Items { opened: self.opened, items, room };
            if self.events.send(event).await.is_err() {
                return Err(Status::unavailable("the host is shutting down"));
            }
            if let Some(violation) = violation {
                return Err(Status::invalid_argument(violation));
            }
        }
        Ok(())
    }
}

/// Waits for a message, and takes what else has arrived with it: handled together, it is answered together, which
/// costs both sides less. Returns how the stream ended, if it has.
async fn receive(
    inbound: &mut Streaming<v1::ClientMessage>,
    items: &mut Vec<v1::ClientItem>,
) -> Option<Result<(), Status>> {
    let mut messages = 0;
    poll_fn(|context| {
        while items.len() < EVENT_ITEMS_MAX && messages < EVENT_ITEMS_MAX {
            match Pin::new(&mut *inbound).poll_next(context) {
                Poll::Ready(Some(message)) => match message.and_then(counted) {
                    Ok(more) => items.extend(more),
                    Err(status) => return Poll::Ready(Some(Err(status))),
                },
                Poll::Ready(None) => return Poll::Ready(Some(Ok(()))),
                Poll::Pending if items.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
            messages += 1;
        }
        Poll::Ready(None)
    })
    .await
}

fn counted(message: v1::ClientMessage) -> Result<Vec<v1::ClientItem>, Status> {
    if message.items.len() > ITEMS_PER_MESSAGE_MAX {
        return Err(Status::invalid_argument(format!("more than {ITEMS_PER_MESSAGE_MAX} items in one message")));
    }
    Ok(message.items)
}

/// What the peer did wrong, as opposed to a transport that broke: only the latter has a cause below it.
fn is_protocol_fault(status: &Status) -> bool {
    std::error::Error::source(status).is_none()
        && matches!(status.code(), tonic::Code::OutOfRange | tonic::Code::Internal | tonic::Code::InvalidArgument)
}

/// Parses items up to the first violation.
fn parse(session: SessionId, items: impl Iterator<Item = v1::ClientItem>) -> (Vec<Parsed>, Option<&'static str>) {
    let mut parsed = Vec::with_capacity(items.size_hint().0);
    for item in items {
        match parse_item(session, item) {
            Ok(item) => parsed.push(item),
            Err(violation) => return (parsed, Some(violation)),
        }
    }
    (parsed, None)
}
