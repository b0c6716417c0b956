//! The port for proxies: one task a stream, which parses what arrives and hands it to the driver.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use turnstile_core::SessionId;
use turnstile_protocol::MESSAGE_MAX_BYTES;
use turnstile_protocol::v1;
use turnstile_protocol::v1::client_item::Item;
use turnstile_protocol::v1::lock_service_server::{LockService, LockServiceServer};

use crate::driver::{Event, Open, Opened, Outbound, OutboundStream, Refusal, outbound};
use crate::wire::{Parsed, parse_item};

/// A stream that has not said Hello by then is closed.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

/// Items gathered from several messages before they are handed on.
const GATHERED_ITEMS_MAX: usize = 1_024;

/// The gRPC service; cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions {
    events: mpsc::Sender<Event>,
}

impl Sessions {
    /// A service that hands everything to the driver at the other end of `events`.
    pub fn new(events: mpsc::Sender<Event>) -> LockServiceServer<Self> {
        LockServiceServer::new(Self { events }).max_decoding_message_size(MESSAGE_MAX_BYTES)
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
        // The response must start before the first message of the client is awaited: some clients wait for it.
        tokio::spawn(async move {
            if let Err(status) = serve(request.into_inner(), outbound.clone(), events).await {
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
) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO_PATIENCE, inbound.message())
        .await
        .map_err(|_| Status::invalid_argument("no Hello within 5 seconds"))??;
    let mut items = first.unwrap_or_default().items.into_iter();
    let Some(v1::ClientItem { item: Some(Item::Hello(hello)) }) = items.next() else {
        return Err(Status::invalid_argument("the first item of a session stream must be a Hello"));
    };
    let (alive, mut given_up) = oneshot::channel();
    let opened = open(hello, outbound, alive, &events).await?;
    // The driver holds the other sender: when it drops its own, the stream of answers must be able to end.
    let rest: Vec<_> = items.collect();
    let result = tokio::select! {
        result = forward(&mut inbound, rest, opened, &events) => result,
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

async fn forward(
    inbound: &mut Streaming<v1::ClientMessage>,
    first: Vec<v1::ClientItem>,
    opened: Opened,
    events: &mpsc::Sender<Event>,
) -> Result<(), Status> {
    let (mut received, mut end) = (first, None);
    loop {
        let (items, violation) = parse(opened.session, std::mem::take(&mut received));
        if !items.is_empty() && events.send(Event::Items { opened, items }).await.is_err() {
            return Err(Status::unavailable("the host is shutting down"));
        }
        if let Some(violation) = violation {
            return Err(Status::invalid_argument(violation));
        }
        match end {
            None => end = receive(inbound, &mut received).await,
            Some(Err(status)) if is_protocol_fault(&status) => return Err(status),
            // A broken transport is no fault to report to anybody: the session is suspended and may resume.
            Some(_) => return Ok(()),
        }
    }
}

/// Waits for a message, and takes what else has arrived with it: handled together, it is answered together, which
/// costs both sides less. Returns how the stream ended, if it has.
async fn receive(
    inbound: &mut Streaming<v1::ClientMessage>,
    items: &mut Vec<v1::ClientItem>,
) -> Option<Result<(), Status>> {
    poll_fn(|context| {
        while items.len() < GATHERED_ITEMS_MAX {
            match Pin::new(&mut *inbound).poll_next(context) {
                Poll::Ready(Some(Ok(message))) => items.extend(message.items),
                Poll::Ready(Some(Err(status))) => return Poll::Ready(Some(Err(status))),
                Poll::Ready(None) => return Poll::Ready(Some(Ok(()))),
                Poll::Pending if items.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(None)
    })
    .await
}

fn is_protocol_fault(status: &Status) -> bool {
    matches!(status.code(), tonic::Code::OutOfRange | tonic::Code::Internal | tonic::Code::InvalidArgument)
}

/// Parses items up to the first violation.
fn parse(session: SessionId, items: Vec<v1::ClientItem>) -> (Vec<Parsed>, Option<&'static str>) {
    let mut parsed = Vec::with_capacity(items.len());
    for item in items {
        match parse_item(session, item) {
            Ok(item) => parsed.push(item),
            Err(violation) => return (parsed, Some(violation)),
        }
    }
    (parsed, None)
}
