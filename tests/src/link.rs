//! A network between two components that can be cut, silenced in one direction or both, slowed down and healed.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How the network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    /// Everything passes.
    Fair,
    /// Everything passes, this much later.
    Slow(Duration),
    /// Connections stay open and nothing passes in this direction; without one, in none: a half-open connection.
    Silent(Option<Direction>),
    /// Connections are closed, and new ones too.
    Cut,
}

/// Which way something goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// From who connected to who listens.
    There,
    /// From who listens to who connected.
    Back,
}

impl Weather {
    fn stops(self, direction: Direction) -> bool {
        matches!(self, Self::Silent(stopped) if stopped.is_none_or(|stopped| stopped == direction))
    }
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
        self.weather.send_replace(Weather::Silent(None));
    }

    /// Keeps back from now on what is sent, and lets pass what is answered.
    pub fn mute(&self) {
        self.weather.send_replace(Weather::Silent(Some(Direction::There)));
    }

    /// Lets requests pass from now on and keeps back what is answered.
    pub fn deafen(&self) {
        self.weather.send_replace(Weather::Silent(Some(Direction::Back)));
    }

    /// Everything arrives later by `delay` at least, and by twice that at most.
    pub fn slow_down(&self, delay: Duration) {
        self.weather.send_replace(Weather::Slow(delay));
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
    let passes = |now: &Weather| !now.stops(Direction::There);
    if weather.wait_for(passes).await.is_ok_and(|now| *now == Weather::Cut) {
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
            pass(near_read, far_write, Direction::There, weather.clone()),
            pass(far_read, near_write, Direction::Back, weather.clone())
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
    direction: Direction,
    mut weather: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let now = weather.wait_for(|now| !now.stops(direction)).await.map_or(Weather::Fair, |now| *now);
        if let Weather::Slow(delay) = now {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port can be bound");
        let address = listener.local_addr().expect("a listener has an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
        address
    }

    async fn answered(stream: &mut TcpStream) -> bool {
        stream.write_all(b"x").await.expect("the connection is open");
        tokio::time::timeout(Duration::from_millis(200), stream.read_u8()).await.is_ok()
    }

    // If a link let through what it ought to stop, no test of a cut network would mean anything.

    #[tokio::test]
    async fn what_is_silenced_arrives_when_it_is_healed() {
        let link = Link::to(echo().await).await;
        let mut stream = TcpStream::connect(link.address).await.unwrap();
        assert!(answered(&mut stream).await);
        for silence in [Link::silence, Link::mute, Link::deafen] {
            silence(&link);
            assert!(!answered(&mut stream).await);
            link.heal();
            assert_eq!(stream.read_u8().await.unwrap(), b'x');
        }
    }

    #[tokio::test]
    async fn a_slow_link_delays_and_a_cut_one_closes() {
        let link = Link::to(echo().await).await;
        let mut stream = TcpStream::connect(link.address).await.unwrap();
        link.slow_down(Duration::from_millis(150));
        assert!(!answered(&mut stream).await, "two delays are more than this waits");
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        link.cut();
        assert!(stream.read_u8().await.is_err_and(|error| error.kind() == std::io::ErrorKind::UnexpectedEof));
    }
}
