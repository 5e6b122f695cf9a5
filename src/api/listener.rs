//! Connections: counted, cut off when the other side does not read, closed when nothing moves on them.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tokio_io_timeout::TimeoutWriter;

use crate::config::api::ApiConfig;

/// What the kernel holds for a client beyond what is on its way, in bytes. Left to itself it takes megabytes for each
/// client that does not read.
const UNSENT_BYTES: u32 = 256 << 10;

/// Takes a permit before it accepts, so that the kernel's backlog holds what is too much.
pub(super) struct Guarded {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    stall: Duration,
    idle: Duration,
}

impl Guarded {
    pub fn new(listener: TcpListener, config: &ApiConfig) -> Self {
        Self {
            listener,
            permits: Arc::new(Semaphore::new(config.connections)),
            stall: Duration::from_secs(config.stall_secs),
            idle: Duration::from_secs(config.idle_secs),
        }
    }
}

/// A connection whose writes fail when nothing can be written for the stall time, and whose reads fail when nothing
/// was read or written for the idle time: silence must not hold a permit. Event streams have heartbeats.
pub(super) struct Connection {
    stream: Pin<Box<TimeoutWriter<TcpStream>>>,
    idle: Duration,
    idle_timer: Pin<Box<Sleep>>,
    /// When something was last read or written.
    moved: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Listener for Guarded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, address) = Listener::accept(&mut self.listener).await;
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
            idle_timer: Box::pin(sleep(self.idle)),
            moved: Instant::now(),
            _permit: permit,
        };
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
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
            self.moved = Instant::now();
            return read;
        }
        self.poll_idle(cx)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.stream.as_mut().poll_write(cx, buf);
        self.reset_if_stalled(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream.as_mut().poll_write_vectored(cx, bufs);
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
