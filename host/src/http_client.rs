//! One HTTP/1 request on a connection of its own, for small talk with parts on the same machine.

use std::io;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, ToSocketAddrs};

/// The largest answer that is read.
const ANSWER_MAX_BYTES: usize = 16 << 20;

/// Sends a request, with a JSON body if there is one; returns the status and the body of the answer.
pub(crate) async fn ask(
    address: impl ToSocketAddrs,
    host: &str,
    method: &str,
    path: &str,
    json: Option<String>,
) -> io::Result<(u16, Bytes)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
    if json.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let request = request.body(Full::new(Bytes::from(json.unwrap_or_default()))).map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await.map_err(io::Error::other)?;
    Ok((status, body.to_bytes()))
}
