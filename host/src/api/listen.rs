//! The API's port: so many connections at once, each with one request at a time and little patience for slow ones.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::StreamExt;
use tonic::transport::server::Connected;

use crate::port::{self, Connection};

/// A connection without a complete request head for this long is closed, an idle one too.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);

/// The head of a request at most, and what is read ahead.
const BUFFER_MAX_BYTES: usize = 64 * 1024;

/// After an error of the listener (no more files, most likely) the next connection is taken a little later.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Where a request came from, if the system knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) Option<SocketAddr>);

/// Serves until the sender is used or dropped; then requests under way may still end.
pub(super) fn serve(
    listener: TcpListener,
    connections_max: usize,
    router: Router,
) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let (end, mut ended) = oneshot::channel();
    let task = tokio::spawn(async move {
        let mut incoming = std::pin::pin!(port::incoming(listener, connections_max));
        let (closing, closed) = watch::channel(());
        // Dropped with its connections if this task is aborted.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                connection = incoming.next() => match connection {
                    Some(Ok(connection)) => {
                        connections.spawn(serve_one(connection, router.clone(), closed.clone()));
                    }
                    Some(Err(error)) => {
                        tracing::warn!(%error, "the API takes no connection for a moment");
                        tokio::time::sleep(ERROR_PAUSE).await;
                    }
                    None => break,
                },
                Some(_) = connections.join_next() => {}
                _ = &mut ended => break,
            }
        }
        drop(closing);
        while connections.join_next().await.is_some() {}
    });
    (end, task)
}

async fn serve_one(connection: Connection, router: Router, mut closed: watch::Receiver<()>) {
    let peer = Peer(connection.connect_info().remote_addr());
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        router.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE).max_buf_size(BUFFER_MAX_BYTES);
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(connection), service));
    tokio::select! {
        // A client that broke off has nobody to be told.
        _ = serving.as_mut() => return,
        _ = closed.changed() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}
