//! The port for proxies: one task a stream, which parses what arrives and hands it to the driver.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
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
    /// A service that hands everything to the driver at the other end of `events`.
    pub fn new(events: mpsc::Sender<Event>) -> LockServiceServer<Self> {
        LockServiceServer::new(Self { events, backlog: Backlog::default() })
            .max_decoding_message_size(MESSAGE_MAX_BYTES)
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
    // The driver holds the other sender: when it drops its own, the stream of answers must be able to end.
    let forwarder = Forwarder { opened, events: &events, share };
    let result = tokio::select! {
        result = forwarder.run(&mut inbound, items) => result,
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
    async fn run(
        &self,
        inbound: &mut Streaming<v1::ClientMessage>,
        first: std::vec::IntoIter<v1::ClientItem>,
    ) -> Result<(), Status> {
        let mut next = Some(first);
        while let Some(items) = next {
            self.hand_over(items).await?;
            // A broken transport is no fault to report to anybody: the session is suspended and may resume.
            next = match inbound.message().await {
                Ok(Some(message)) => Some(counted(message)?.into_iter()),
                Ok(None) => None,
                Err(status) if is_protocol_fault(&status) => return Err(status),
                Err(_) => None,
            };
        }
        Ok(())
    }

    /// In several events, each as soon as there is room for it.
    async fn hand_over(&self, mut items: std::vec::IntoIter<v1::ClientItem>) -> Result<(), Status> {
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

fn counted(message: v1::ClientMessage) -> Result<Vec<v1::ClientItem>, Status> {
    if message.items.len() > ITEMS_PER_MESSAGE_MAX {
        return Err(Status::invalid_argument(format!("more than {ITEMS_PER_MESSAGE_MAX} items in one message")));
    }
    Ok(message.items)
}

fn is_protocol_fault(status: &Status) -> bool {
    matches!(status.code(), tonic::Code::OutOfRange | tonic::Code::Internal | tonic::Code::InvalidArgument)
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
