//! Frames: `u32` big-endian length of what follows, `u8` kind, payload.
//!
//! Control payloads are JSON; output is binary: `u8` stream, `u64` big-endian offset
//! of the first byte within that stream, then the bytes.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::containment::Facts;

/// Both sides refuse a peer that speaks another version.
pub const VERSION: u32 = 4;

/// Where the runner's socket is seen in the sandbox.
pub const SOCKET_PATH: &str = "/run/kage/run.sock";

/// The name of the socket, in the folder of the first one, on which a runner waits for a shim that has its job. Half of
/// the session is in it, which is enough not to be guessed; the folder cannot be listed in the sandbox. So no program
/// in there can find it, and take the shim's place in the queue.
pub fn socket_of(session: &str) -> String {
    let half = session.chars().take(session.chars().count() / 2);
    format!("{}.sock", half.collect::<String>())
}

/// Largest frame that either side accepts, in bytes (a prompt of 1 MiB, JSON-escaped, fits).
pub const MAX_FRAME: usize = 16 * 1024 * 1024;

/// Most output bytes that the shim puts into one frame.
pub const MAX_OUTPUT: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// As in an output frame; the same as the file descriptor's.
    const fn number(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }
}

/// Byte positions, one for each output stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offsets {
    pub stdout: u64,
    pub stderr: u64,
}

/// First frame of every connection, from the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    pub version: u32,
    /// The secret from [`Job::session`]; none before a job was received.
    pub session: Option<String>,
    /// Oldest bytes that the shim can still send.
    pub acked: Offsets,
    /// What the sandbox looks like from inside; only before a job was received.
    pub facts: Option<Box<Facts>>,
}

/// What to run. Nothing of it is ever in the container's environment or command line.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Random; shown again by the shim when it reconnects.
    pub session: String,
    /// Program (absolute, or looked up in `env["PATH"]`) and its arguments. Never a shell line.
    pub argv: Vec<String>,
    /// The CLI's whole environment.
    pub env: BTreeMap<String, String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// Written to the CLI's standard input, which is then closed.
    pub stdin: String,
    /// Written for the CLI before it starts.
    pub file: Option<JobFile>,
    /// The way to the model API, for as long as the CLI runs.
    pub bridge: Option<Bridge>,
    /// Writable places, absolute, whose room is limited: the end tells which of them were full.
    #[serde(default)]
    pub places: Vec<String>,
    /// Also write the output to the shim's own streams, for the engine's log: as much as goes without waiting.
    pub copy_output: bool,
    pub limits: JobLimits,
}

/// A file of the CLI's user, mode 0600. It must not be there yet.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobFile {
    /// Absolute, in a folder that is there.
    pub path: String,
    pub text: String,
}

/// Connections to `127.0.0.1:port` are carried to a Unix socket. The CLI does not start if the port is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bridge {
    pub port: u16,
    /// Absolute path of the socket.
    pub socket: String,
}

/// The shim's own limits: they hold also when no runner is there to enforce its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobLimits {
    /// Seconds from the CLI's start until the shim ends it, whatever the runner does.
    pub wall_secs: u64,
    /// Seconds without a runner after which the shim ends the CLI and itself.
    pub orphan_secs: u64,
    /// Milliseconds between SIGTERM and SIGKILL.
    pub grace_ms: u64,
    /// Bytes of unacknowledged output kept, over both streams; then the CLI's pipes block.
    pub buffer_bytes: u64,
}

/// Answer to a [`Hello`] that shows the session: send again from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    pub committed: Offsets,
}

/// How the CLI ended. Sent after the last output byte; sent again after a reconnect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exited {
    /// Exit status, if the CLI ended by itself.
    pub code: Option<i32>,
    /// Signal number, if a signal ended it.
    pub signal: Option<i32>,
    /// Why the CLI could not be started at all.
    pub spawn_error: Option<String>,
    /// Whether the shim ended it, and for which reason.
    pub ended_by: EndedBy,
    /// Processes that the kernel ended for want of memory, as the cgroup counts them.
    pub oom_kills: u64,
    /// Processes and threads that were not made because of their limit, as the cgroup counts them.
    #[serde(default)]
    pub refused_forks: u64,
    /// Those of [`Job::places`] that were full at one time or another.
    #[serde(default)]
    pub full: Vec<String>,
    /// Final length of each stream, in bytes.
    pub total: Offsets,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// The CLI ended by itself.
    Itself,
    /// The runner asked ([`FromRunner::Terminate`]).
    Runner,
    /// The container got SIGTERM, which the runner does not send: an engine that is stopped or started anew does, and a
    /// process inside may.
    Container,
    /// The shim's own wall clock ([`JobLimits::wall_secs`]).
    WallClock,
    /// No runner for [`JobLimits::orphan_secs`].
    Orphaned,
}

/// Runner to shim.
#[derive(Clone, PartialEq, Eq)]
pub enum FromRunner {
    Job(Box<Job>),
    Resume(Resume),
    /// Everything below these offsets is committed and may be dropped.
    Ack(Offsets),
    /// End the CLI: SIGTERM to its processes, SIGKILL after the grace time.
    Terminate,
    /// The runner has recorded [`Exited`]; the shim may exit with the CLI's status.
    Release,
}

/// Shim to runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromShim {
    Hello(Hello),
    /// The CLI's process exists.
    Started,
    Output {
        stream: Stream,
        /// Offset of the first byte within its stream.
        offset: u64,
        bytes: Vec<u8>,
    },
    Exited(Exited),
}

mod kind {
    pub const HELLO: u8 = 1;
    pub const STARTED: u8 = 2;
    pub const OUTPUT: u8 = 3;
    pub const EXITED: u8 = 4;
    pub const JOB: u8 = 16;
    pub const RESUME: u8 = 17;
    pub const ACK: u8 = 18;
    pub const TERMINATE: u8 = 19;
    pub const RELEASE: u8 = 20;
}

fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

fn frame(kind: u8, parts: &[&[u8]]) -> io::Result<Vec<u8>> {
    let length = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
    if length > MAX_FRAME {
        return Err(invalid(format!("a frame of {length} bytes is over the limit of {MAX_FRAME}")));
    }
    let mut bytes = Vec::with_capacity(4 + length);
    bytes.extend_from_slice(&u32::try_from(length).map_err(|_| invalid("frame too long"))?.to_be_bytes());
    bytes.push(kind);
    for part in parts {
        bytes.extend_from_slice(part);
    }
    Ok(bytes)
}

/// Bytes of an output frame before its payload.
pub const OUTPUT_HEADER: usize = 4 + 1 + 1 + 8;

/// What precedes `length` bytes of output, which must be at most [`MAX_OUTPUT`].
///
/// For a sender that will not copy the bytes into a frame.
#[must_use]
pub fn output_header(stream: Stream, offset: u64, length: usize) -> [u8; OUTPUT_HEADER] {
    debug_assert!(length <= MAX_OUTPUT, "an output frame of {length} bytes");
    let mut header = [0; OUTPUT_HEADER];
    let rest = (OUTPUT_HEADER - 4 + length) as u32;
    header[..4].copy_from_slice(&rest.to_be_bytes());
    header[4] = kind::OUTPUT;
    header[5] = stream.number();
    header[6..].copy_from_slice(&offset.to_be_bytes());
    header
}

fn json_frame(kind: u8, value: &impl Serialize) -> io::Result<Vec<u8>> {
    frame(kind, &[&serde_json::to_vec(value)?])
}

fn from_json<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> io::Result<T> {
    serde_json::from_slice(payload).map_err(|error| invalid(format!("malformed control frame: {error}")))
}

/// Checks a frame's length prefix.
///
/// # Errors
/// `InvalidData` if it is zero or over [`MAX_FRAME`].
pub fn frame_length(prefix: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(prefix) as usize;
    if length == 0 || length > MAX_FRAME {
        return Err(invalid(format!("a frame of {length} bytes is refused")));
    }
    Ok(length)
}

impl FromRunner {
    /// The whole frame, length prefix included.
    ///
    /// # Errors
    /// `InvalidData` if it would be over [`MAX_FRAME`].
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::Job(job) => json_frame(kind::JOB, job),
            Self::Resume(resume) => json_frame(kind::RESUME, resume),
            Self::Ack(offsets) => json_frame(kind::ACK, offsets),
            Self::Terminate => frame(kind::TERMINATE, &[]),
            Self::Release => frame(kind::RELEASE, &[]),
        }
    }

    /// Reads a frame's body (after the length prefix).
    ///
    /// # Errors
    /// `InvalidData` if the body is not such a frame.
    pub fn decode(body: &[u8]) -> io::Result<Self> {
        let (&kind, payload) = body.split_first().ok_or_else(|| invalid("empty frame"))?;
        Ok(match kind {
            kind::JOB => Self::Job(Box::new(from_json(payload)?)),
            kind::RESUME => Self::Resume(from_json(payload)?),
            kind::ACK => Self::Ack(from_json(payload)?),
            kind::TERMINATE => Self::Terminate,
            kind::RELEASE => Self::Release,
            other => return Err(invalid(format!("unknown frame kind {other} from the runner"))),
        })
    }
}

impl FromShim {
    /// The whole frame, length prefix included.
    ///
    /// # Errors
    /// `InvalidData` if it would be over [`MAX_FRAME`].
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::Hello(hello) => json_frame(kind::HELLO, hello),
            Self::Started => frame(kind::STARTED, &[]),
            Self::Output { stream, offset, bytes } => {
                frame(kind::OUTPUT, &[&[stream.number()], &offset.to_be_bytes(), bytes])
            }
            Self::Exited(exited) => json_frame(kind::EXITED, exited),
        }
    }

    /// Reads a frame's body (after the length prefix).
    ///
    /// # Errors
    /// `InvalidData` if the body is not such a frame.
    pub fn decode(body: &[u8]) -> io::Result<Self> {
        let (&kind, payload) = body.split_first().ok_or_else(|| invalid("empty frame"))?;
        Ok(match kind {
            kind::HELLO => Self::Hello(from_json(payload)?),
            kind::STARTED => Self::Started,
            kind::OUTPUT => {
                let (stream, rest) =
                    payload.split_first().ok_or_else(|| invalid("output without a stream"))?;
                let stream = match stream {
                    1 => Stream::Stdout,
                    2 => Stream::Stderr,
                    other => return Err(invalid(format!("unknown output stream {other}"))),
                };
                let (offset, bytes) =
                    rest.split_first_chunk::<8>().ok_or_else(|| invalid("output without an offset"))?;
                Self::Output { stream, offset: u64::from_be_bytes(*offset), bytes: bytes.to_vec() }
            }
            kind::EXITED => Self::Exited(from_json(payload)?),
            other => return Err(invalid(format!("unknown frame kind {other} from the shim"))),
        })
    }
}

/// Reads one frame's body.
///
/// # Errors
/// Those of the reader, and `InvalidData` for a refused length.
pub fn read_body(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut prefix = [0; 4];
    reader.read_exact(&mut prefix)?;
    let mut body = vec![0; frame_length(prefix)?];
    reader.read_exact(&mut body)?;
    Ok(body)
}

/// Writes one encoded frame.
///
/// # Errors
/// Those of the writer.
pub fn write_frame(writer: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    writer.write_all(frame)?;
    writer.flush()
}

/// Job's text may hold secrets and prompts: never print it.
impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job")
            .field("program", &self.argv.first())
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_header_is_the_beginning_of_an_output_frame() {
        for (stream, offset, length) in [(Stream::Stdout, 0, 1), (Stream::Stderr, u64::MAX / 3, MAX_OUTPUT)] {
            let bytes = vec![b'x'; length];
            let mut frame = output_header(stream, offset, length).to_vec();
            frame.extend_from_slice(&bytes);
            let whole = FromShim::Output { stream, offset, bytes };
            assert_eq!(whole.encode().ok(), Some(frame.clone()));
            let body = read_body(&mut frame.as_slice()).expect("a whole frame");
            assert_eq!(FromShim::decode(&body).ok(), Some(whole));
        }
    }
}
