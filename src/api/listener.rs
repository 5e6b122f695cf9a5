//! Connections: counted, also by network; cut off when the other side does not read; closed when nothing moves on them, and when a
//! request does not come to its end. TLS is spoken
//! on top: a handshake runs beside the others, and whoever does not finish it holds up nobody.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use ipnet::IpNet;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_io_timeout::TimeoutWriter;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::api::network::network;
use crate::api::tls::{Tls, identity};
use crate::config::api::ApiConfig;

/// What the kernel holds for a client beyond what is on its way, in bytes. Left to itself it takes megabytes for each
/// client that does not read.
const UNSENT_BYTES: u32 = 256 << 10;

/// Most handshakes of one address (IPv6: of a /64) at once: they hold permits, and nobody shall have them all.
const HANDSHAKES: usize = 512;
/// Of all connections one network has a half at most, unless it is a trusted proxy's. So many are always let in.
const FEW: usize = 64;

/// The other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub address: SocketAddr,
    pub tls: bool,
    /// The subject of the certificate that the client has shown, verified.
    pub certificate: Option<Arc<str>>,
}

pub(super) type Io = Either<Connection, Box<TlsStream<Connection>>>;

/// Takes connections, and makes them ready for requests.
pub(super) struct Guarded {
    door: Door,
    tls: Option<Tls>,
    handshakes: JoinSet<Option<(Io, Remote)>>,
    pending: Crowd,
}

/// Takes a permit before it accepts, so that the kernel's backlog holds what is too much.
struct Door {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    crowd: Crowd,
    trusted: Vec<IpNet>,
    stall: Duration,
    idle: Duration,
    answer: Duration,
}

impl Guarded {
    pub fn new(listener: TcpListener, config: &ApiConfig, tls: Option<Tls>) -> Self {
        let door = Door {
            listener,
            permits: Arc::new(Semaphore::new(config.connections)),
            crowd: Crowd::of((config.connections / 2).max(FEW)),
            trusted: config.edge.trusted_proxies.clone(),
            stall: Duration::from_secs(config.stall_secs),
            idle: Duration::from_secs(config.idle_secs),
            answer: Duration::from_secs(config.answer_secs),
        };
        Self { door, tls, handshakes: JoinSet::new(), pending: Crowd::of(HANDSHAKES) }
    }
}

/// How many there are of each network, and how many there may be.
#[derive(Debug, Clone)]
struct Crowd {
    most: usize,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One of them.
#[derive(Debug)]
struct Place {
    crowd: Crowd,
    network: IpAddr,
}

impl Crowd {
    fn of(most: usize) -> Self {
        Self { most, counts: Arc::default() }
    }

    fn enter(&self, address: IpAddr) -> Option<Place> {
        let network = network(address.to_canonical());
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(network).or_default();
        (*count < self.most).then(|| {
            *count += 1;
            Place { crowd: self.clone(), network }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.network);
            }
        }
    }
}

/// `None`: the client did not manage it, or not in time.
async fn shake_hands(
    tls: Tls,
    connection: Connection,
    address: SocketAddr,
    _: Place,
) -> Option<(Io, Remote)> {
    let handshake = TlsAcceptor::from(tls.current()).accept(connection);
    match timeout(tls.handshake, handshake).await {
        Ok(Ok(stream)) => {
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let certificate = shown.map(|shown| Arc::from(identity::subject(shown)));
            Some((Either::Right(Box::new(stream)), Remote { address, tls: true, certificate }))
        }
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "api.handshake_failed");
            None
        }
        Err(_) => {
            tracing::debug!(%address, "api.handshake_late");
            None
        }
    }
}

/// A connection whose writes fail when nothing can be written for the stall time, and whose reads fail when nothing
/// was read or written for the idle time: silence must not hold a permit. Event streams have heartbeats.
pub(super) struct Connection {
    stream: Pin<Box<TimeoutWriter<TcpStream>>>,
    idle: Duration,
    /// From a request's first byte to ours: a byte now and then keeps nothing open for longer.
    answer: Duration,
    idle_timer: Pin<Box<Sleep>>,
    /// When something was last read or written.
    moved: Instant,
    /// When the first byte came after our last one.
    asked: Option<Instant>,
    _place: Option<Place>,
    _permit: OwnedSemaphorePermit,
}

impl Door {
    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, address, place) = loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            let ip = address.ip().to_canonical();
            if self.trusted.iter().any(|trusted| trusted.contains(&ip)) {
                break (stream, address, None);
            }
            match self.crowd.enter(ip) {
                Some(place) => break (stream, address, Some(place)),
                None => tracing::debug!(%address, "api.too_many_connections"),
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "api.nodelay_refused");
        }
        if let Err(error) = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES) {
            tracing::debug!(%error, "api.notsent_lowat_refused");
        }
        let mut stream = TimeoutWriter::new(stream);
        stream.set_timeout(Some(self.stall));
        let connection = Connection {
            stream: Box::pin(stream),
            idle: self.idle,
            answer: self.answer,
            idle_timer: Box::pin(sleep(self.idle)),
            moved: Instant::now(),
            asked: None,
            _place: place,
            _permit: permit,
        };
        (connection, address)
    }
}

impl Listener for Guarded {
    type Io = Io;
    type Addr = Remote;

    async fn accept(&mut self) -> (Io, Remote) {
        loop {
            let Self { door, tls, handshakes, pending } = self;
            // Nothing is lost by the branch that is given up: neither has taken anything yet.
            let (connection, address) = tokio::select! {
                Some(done) = handshakes.join_next() => match done {
                    Ok(Some(ready)) => return ready,
                    Ok(None) => continue,
                    Err(error) => {
                        tracing::error!(%error, "api.handshake_broke");
                        continue;
                    }
                },
                accepted = door.accept() => accepted,
            };
            let Some(tls) = tls else {
                let remote = Remote { address, tls: false, certificate: None };
                return (Either::Left(connection), remote);
            };
            match pending.enter(address.ip()) {
                Some(handshake) => {
                    drop(handshakes.spawn(shake_hands(tls.clone(), connection, address, handshake)))
                }
                None => tracing::debug!(%address, "api.too_many_handshakes"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<Remote> {
        let address = self.door.listener.local_addr()?;
        Ok(Remote { address, tls: self.tls.is_some(), certificate: None })
    }
}

impl Connection {
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.idle_timer.as_mut().poll(cx));
            let due = self.moved + self.idle;
            if due <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.idle_timer.as_mut().reset(due);
        }
    }

    /// Bytes of an answer end the time that a request has.
    fn answers(&mut self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(1..)) = written {
            self.asked = None;
        }
    }

    /// Passes a write's outcome on. A client that was cut off is reset: with an orderly end the kernel would go on
    /// offering it what it did not read, for minutes.
    fn reset_if_stalled<T>(&mut self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.moved = Instant::now();
        }
        if let Poll::Ready(Err(error)) = &outcome
            && error.kind() == io::ErrorKind::TimedOut
        {
            tracing::info!("api.client_stalled");
            if let Err(error) = self.stream.get_ref().set_zero_linger() {
                tracing::debug!(%error, "api.linger_refused");
            }
        }
        outcome
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.stream.as_mut().poll_read(cx, buf);
        if read.is_ready() {
            let now = Instant::now();
            self.moved = now;
            return if now.duration_since(*self.asked.get_or_insert(now)) < self.answer {
                read
            } else {
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            };
        }
        self.poll_idle(cx)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.stream.as_mut().poll_write(cx, buf);
        self.answers(&written);
        self.reset_if_stalled(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream.as_mut().poll_write_vectored(cx, bufs);
        self.answers(&written);
        self.reset_if_stalled(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.stream.as_mut().poll_flush(cx);
        self.reset_if_stalled(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = self.stream.as_mut().poll_shutdown(cx);
        self.reset_if_stalled(shut)
    }
}
