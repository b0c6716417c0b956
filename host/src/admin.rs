//! The probes: `/live` (is the process turning) and `/ready` (would it grant a lock).

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::clock;
use crate::driver::Health;

/// Serves the probes until the sender is used or dropped.
pub fn serve(listener: TcpListener, health: Arc<Health>) -> (oneshot::Sender<()>, JoinHandle<()>) {
    let (end, ended) = oneshot::channel();
    let live = Arc::clone(&health);
    let router = Router::new()
        .route(
            "/live",
            get(move || async move { answer((!live.is_live(clock::now())).then_some("the driver is stuck")) }),
        )
        .route("/ready", get(move || async move { answer(health.unready(clock::now())) }));
    let task = tokio::spawn(async move {
        let server = axum::serve(listener, router).with_graceful_shutdown(async move {
            let _ = ended.await;
        });
        if let Err(error) = server.await {
            tracing::error!(%error, "the admin port failed");
        }
    });
    (end, task)
}

fn answer(problem: Option<&'static str>) -> (StatusCode, String) {
    match problem {
        None => (StatusCode::OK, "ok\n".into()),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
    }
}
