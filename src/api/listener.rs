//! Connections: counted, and cut off when the other side does not read.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutWriter;

/// What the kernel holds for a client beyond what is on its way, in bytes. Left to itself it takes megabytes for each
/// client that does not read.
const UNSENT_BYTES: u32 = 256 << 10;

/// Takes a permit before it accepts, so that the kernel's backlog holds what is too much.
pub(super) struct Guarded {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    stall: Duration,
}

impl Guarded {
    pub fn new(listener: TcpListener, connections: usize, stall_secs: u64) -> Self {
        Self {
            listener,
            permits: Arc::new(Semaphore::new(connections)),
            stall: Duration::from_secs(stall_secs),
        }
    }
}

/// A connection whose writes fail when nothing can be written for the stall time.
pub(super) struct Connection {
    stream: Pin<Box<TimeoutWriter<TcpStream>>>,
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
        (Connection { stream: Box::pin(stream), _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Connection {
    /// Passes a write's outcome on. A client that was cut off is reset: with an orderly end the kernel would go on
    /// offering it what it did not read, for minutes.
    fn reset_if_stalled<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
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
        self.stream.as_mut().poll_read(cx, buf)
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
