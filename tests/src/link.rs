//! A network between two components that can be cut, silenced, deafened and healed.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How the network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    /// Everything passes.
    Fair,
    /// Connections stay open and nothing passes: a half-open connection.
    Silent,
    /// What is sent arrives, and no answer comes back.
    Deaf,
    /// Connections are closed, and new ones too.
    Cut,
}

/// A TCP relay to one address.
pub struct Link {
    /// Connect here to reach the other side.
    pub address: SocketAddr,
    weather: watch::Sender<Weather>,
    /// How many connections there are.
    open: watch::Sender<usize>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Link {
    /// Starts a relay to `target`.
    ///
    /// # Panics
    /// If no port can be bound.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port can be bound");
        let address = listener.local_addr().expect("a listener has an address");
        let weather = watch::Sender::new(Weather::Fair);
        let open = watch::Sender::new(0);
        let accepting = tokio::spawn(accept(listener, target, weather.subscribe(), open.clone()));
        Self { address, weather, open, accepting }
    }

    /// Closes every connection, and new ones at once.
    pub fn cut(&self) {
        self.weather.send_replace(Weather::Cut);
    }

    /// As [`Link::cut`], and waits until all are closed.
    pub async fn cut_all(&self) {
        self.cut();
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Lets nothing pass from now on, while connections stay open.
    pub fn silence(&self) {
        self.weather.send_replace(Weather::Silent);
    }

    /// Lets requests pass from now on and keeps back what is answered.
    pub fn deafen(&self) {
        self.weather.send_replace(Weather::Deaf);
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.weather.send_replace(Weather::Fair);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    weather: watch::Receiver<Weather>,
    open: watch::Sender<usize>,
) {
    while let Ok((near, _)) = listener.accept().await {
        open.send_modify(|open| *open += 1);
        let (weather, open) = (weather.clone(), open.clone());
        tokio::spawn(async move {
            relay(near, target, weather).await;
            open.send_modify(|open| *open -= 1);
        });
    }
}

async fn relay(near: TcpStream, target: SocketAddr, mut weather: watch::Receiver<Weather>) {
    if weather.wait_for(|now| *now != Weather::Silent).await.is_ok_and(|now| *now == Weather::Cut) {
        return;
    }
    let Ok(far) = TcpStream::connect(target).await else {
        return;
    };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let both = async {
        tokio::join!(
            pass(near_read, far_write, weather.clone(), |now| now != Weather::Silent),
            pass(far_read, near_write, weather.clone(), |now| now != Weather::Silent && now != Weather::Deaf),
        )
    };
    let mut watch = weather.clone();
    tokio::select! {
        _ = both => {}
        _ = watch.wait_for(|now| *now == Weather::Cut) => {}
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut weather: watch::Receiver<Weather>,
    passes: impl Fn(Weather) -> bool,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let _ = weather.wait_for(|now| passes(*now)).await;
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
