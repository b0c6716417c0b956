//! The cheapest authorisation services that can be: each check is allowed, with an answer as small as it may be.
//!
//! Each runs as a process of its own, so that its CPU is told apart from the load's, as the host's is.

use std::convert::Infallible;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

/// How a check comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As an HTTP/1 request; status 200 allows.
    Http,
    /// As `envoy.service.auth.v3.Authorization/Check`; an empty `CheckResponse` allows.
    Grpc,
}

/// What the line begins with in which a server tells its address.
const LISTENING: &str = "listening on ";

impl Kind {
    /// The command of `bench-overhead` that runs such a server.
    pub fn command(self) -> &'static str {
        match self {
            Self::Http => "serve-authz-http",
            Self::Grpc => "serve-authz-grpc",
        }
    }

    /// The server that a command runs.
    pub fn of_command(command: &str) -> Option<Self> {
        [Self::Http, Self::Grpc].into_iter().find(|kind| kind.command() == command)
    }
}

/// Serves on a port that it prints, until the process ends.
///
/// # Errors
/// If no port can be had.
pub async fn serve(kind: Kind) -> std::io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let mut out = std::io::stdout();
    writeln!(out, "{LISTENING}{}", listener.local_addr()?)?;
    out.flush()?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(serve_connection(kind, stream));
    }
}

/// The address that a server has printed.
pub fn address_in(output: &str) -> Option<SocketAddr> {
    // A line without its end may be half a line.
    let (lines, _) = output.rsplit_once('\n')?;
    lines.lines().find_map(|line| line.strip_prefix(LISTENING))?.parse().ok()
}

async fn serve_connection(kind: Kind, stream: TcpStream) {
    let stream = TokioIo::new(stream);
    // A connection that breaks shows as failed checks in Envoy's statistics, and the bench looks at those.
    match kind {
        Kind::Http => {
            let builder = http1::Builder::new().auto_date_header(false).clone();
            drop(builder.serve_connection(stream, service_fn(allow_http)).await);
        }
        Kind::Grpc => {
            let builder = http2::Builder::new(TokioExecutor::new()).auto_date_header(false).clone();
            drop(builder.serve_connection(stream, service_fn(allow_grpc)).await);
        }
    }
}

async fn allow_http(_check: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    let mut response = Response::new(Empty::new());
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    Ok(response)
}

async fn allow_grpc(
    check: Request<Incoming>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    // An answer before the end of the question would make an RST_STREAM.
    drop(check.into_body().collect().await);
    // Not compressed, length 0: a CheckResponse whose status is OK because it is absent.
    let message = Full::new(Bytes::from_static(&[0; 5]));
    let mut response = Response::new(message.with_trailers(async {
        let status = (HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"));
        Some(Ok(HeaderMap::from_iter([status])))
    }));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_is_no_address() {
        assert_eq!(address_in("listening on 127.0.0.1:1"), None);
        assert_eq!(address_in("listening on 127.0.0.1:12\n"), Some(SocketAddr::from(([127, 0, 0, 1], 12))));
    }
}
