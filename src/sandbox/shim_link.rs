//! The runner's end of the conversation with a run's shim, once it is connected.
//!
//! The shim is ours, but it runs among hostile programs: every frame is bounded, and output is taken only
//! without a gap. Nothing is read before the caller asks, so a slow caller slows the CLI down.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use kage_shim::protocol::{
    Exited, FromRunner, FromShim, Job, MAX_OUTPUT, Offsets, Stream, VERSION, frame_length,
};
use rand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Largest frame that the shim has reason to send: output, or a small control frame.
const MAX_FROM_SHIM: usize = MAX_OUTPUT + 4096;

/// A peer that does not take what we send by then is no shim of ours.
const SEND_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    #[error("run folder {path:?}: {error}")]
    Folder { path: PathBuf, error: io::Error },
    #[error("the shim has not connected within {0:?}")]
    NotConnected(Duration),
    #[error("the shim speaks protocol version {0}, this runner {VERSION}")]
    Version(u32),
    /// What the peer said cannot come from a sound shim.
    #[error("the shim broke the protocol: {0}")]
    Protocol(String),
    /// The connection ended; the shim may come back.
    #[error("the connection to the shim is closed")]
    Closed,
    #[error("the shim has not taken what was sent within {0:?}")]
    Stalled(Duration),
    #[error("connection to the shim: {0}")]
    Io(#[from] io::Error),
}

/// A new session secret: 256 bits, hexadecimal.
pub fn new_session() -> String {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

/// A connected shim.
#[derive(Debug)]
pub struct ShimLink {
    stream: UnixStream,
    incoming: BytesMut,
    outgoing: BytesMut,
    /// Where the next output byte of each stream belongs.
    received: Offsets,
    acked: Offsets,
    exited: bool,
}

impl ShimLink {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            incoming: BytesMut::with_capacity(2 * MAX_OUTPUT),
            outgoing: BytesMut::new(),
            received: Offsets::default(),
            acked: Offsets::default(),
            exited: false,
        }
    }

    pub(crate) const fn resume_from(&mut self, committed: Offsets) {
        self.received = committed;
        self.acked = committed;
    }

    /// The next thing that the shim says. Output comes in order and without a gap; what was received before a break
    /// is cut off. May be dropped while it waits, without loss.
    ///
    /// # Errors
    /// [`LinkError::Closed`] at the end of the connection, [`LinkError::Protocol`] for what makes no sense.
    pub async fn recv(&mut self) -> Result<FromShim, LinkError> {
        loop {
            match self.recv_frame().await? {
                FromShim::Output { stream, offset, bytes } => {
                    if let Some(output) = self.take_output(stream, offset, bytes)? {
                        return Ok(output);
                    }
                }
                FromShim::Exited(exited) => {
                    self.check_exited(&exited)?;
                    return Ok(FromShim::Exited(exited));
                }
                FromShim::Started if self.exited => {
                    return Err(LinkError::Protocol("started after it has exited".to_owned()));
                }
                FromShim::Started => return Ok(FromShim::Started),
                FromShim::Hello(_) => return Err(LinkError::Protocol("a second hello".to_owned())),
            }
        }
    }

    fn take_output(
        &mut self,
        stream: Stream,
        offset: u64,
        mut bytes: Vec<u8>,
    ) -> Result<Option<FromShim>, LinkError> {
        let protocol = |message: String| Err(LinkError::Protocol(message));
        if self.exited {
            return protocol("output after it has exited".to_owned());
        }
        let expected = match stream {
            Stream::Stdout => &mut self.received.stdout,
            Stream::Stderr => &mut self.received.stderr,
        };
        let Some(end) = offset.checked_add(bytes.len() as u64) else {
            return protocol(format!("output at offset {offset} has no end"));
        };
        if offset > *expected {
            return protocol(format!("a gap in {stream:?}: {offset} after {expected}"));
        }
        if end <= *expected {
            return Ok(None);
        }
        let known = usize::try_from(*expected - offset).unwrap_or(usize::MAX);
        bytes.drain(..known);
        let offset = std::mem::replace(expected, end);
        Ok(Some(FromShim::Output { stream, offset, bytes }))
    }

    fn check_exited(&mut self, exited: &Exited) -> Result<(), LinkError> {
        if exited.total != self.received {
            let (said, received) = (exited.total, self.received);
            return Err(LinkError::Protocol(format!("exited after {said:?}, but {received:?} was received")));
        }
        self.exited = true;
        Ok(())
    }

    /// Tells the shim that everything below `committed` is stored and need not be kept.
    ///
    /// # Errors
    /// [`LinkError::Protocol`] if that much was never received or it goes back; else those of the connection.
    pub async fn ack(&mut self, committed: Offsets) -> Result<(), LinkError> {
        let within = |low: Offsets, high: Offsets| low.stdout <= high.stdout && low.stderr <= high.stderr;
        if !within(committed, self.received) || !within(self.acked, committed) {
            return Err(LinkError::Protocol(format!(
                "cannot acknowledge {committed:?}: received {:?}, acknowledged {:?}",
                self.received, self.acked
            )));
        }
        if committed == self.acked {
            return Ok(());
        }
        self.acked = committed;
        self.send(&FromRunner::Ack(committed)).await
    }

    /// Where the next output byte of each stream belongs: how much was received.
    pub const fn received(&self) -> Offsets {
        self.received
    }

    /// Gives a shim that has none its job: the CLI is started.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn give(&mut self, job: Job) -> Result<(), LinkError> {
        self.send(&FromRunner::Job(Box::new(job))).await
    }

    /// Asks the shim to end the CLI. It answers with [`FromShim::Exited`].
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn terminate(&mut self) -> Result<(), LinkError> {
        self.send(&FromRunner::Terminate).await
    }

    /// Lets the shim exit, and with it the container. To be called when the end is recorded, and all output is
    /// acknowledged: the shim keeps what is not, and stays for it.
    ///
    /// # Errors
    /// [`LinkError::Protocol`] if it is called before that; else those of the connection.
    pub async fn release(&mut self) -> Result<(), LinkError> {
        if !self.exited || self.acked != self.received {
            return Err(LinkError::Protocol("a release before the end is recorded".to_owned()));
        }
        self.send(&FromRunner::Release).await
    }

    /// If it is dropped half way, the rest goes out before the next frame.
    pub(crate) async fn send(&mut self, frame: &FromRunner) -> Result<(), LinkError> {
        self.outgoing.extend_from_slice(&frame.encode()?);
        let flush = async {
            while !self.outgoing.is_empty() {
                self.stream.write_buf(&mut self.outgoing).await?;
            }
            Ok(())
        };
        match timeout(SEND_WITHIN, flush).await {
            Ok(done) => done.map_err(closed),
            Err(_) => Err(LinkError::Stalled(SEND_WITHIN)),
        }
    }

    pub(crate) async fn recv_frame(&mut self) -> Result<FromShim, LinkError> {
        loop {
            if let Some(frame) = self.parse()? {
                return Ok(frame);
            }
            // A frame cut off by the end was not received; the shim sends it again when it comes back.
            if self.stream.read_buf(&mut self.incoming).await.map_err(closed)? == 0 {
                return Err(LinkError::Closed);
            }
        }
    }

    fn parse(&mut self) -> Result<Option<FromShim>, LinkError> {
        let protocol = |error: io::Error| LinkError::Protocol(error.to_string());
        let Some(prefix) = self.incoming.first_chunk::<4>() else { return Ok(None) };
        let length = frame_length(*prefix).map_err(protocol)?;
        if length > MAX_FROM_SHIM {
            return Err(LinkError::Protocol(format!("a frame of {length} bytes")));
        }
        if self.incoming.len() < 4 + length {
            self.incoming.reserve(4 + length - self.incoming.len());
            return Ok(None);
        }
        let frame = FromShim::decode(&self.incoming[4..4 + length]).map_err(protocol)?;
        self.incoming.advance(4 + length);
        Ok(Some(frame))
    }
}

/// The other end's sudden death looks like this on a Unix socket.
fn closed(error: io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => LinkError::Closed,
        _ => LinkError::Io(error),
    }
}
