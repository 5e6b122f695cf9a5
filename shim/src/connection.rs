//! The connection to the runner: dialled again whenever it is lost.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kage_shim::protocol::{self, FromRunner, FromShim};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_millis(500);

/// A runner that accepts but does not answer may be a listener that died before it looked:
/// try again.
const HANDSHAKE: Duration = Duration::from_secs(10);

const READ_BYTES: usize = 64 * 1024;

/// Socket buffer, as far as the kernel grants it: fewer switches between shim and runner.
const SEND_BUFFER: usize = 1024 * 1024;

/// What came from the runner.
pub struct Received {
    pub frames: Vec<FromRunner>,
    /// Why the runner's bytes make no sense.
    pub malformed: Option<io::Error>,
    /// The runner is gone; `frames` came before that.
    pub closed: bool,
}

struct Open {
    socket: OwnedFd,
    /// Received bytes that do not yet make a frame.
    inbox: Vec<u8>,
    /// Control frames not yet taken by the kernel.
    outbox: Vec<u8>,
    /// The runner has said which job, or from where.
    live: bool,
    opened: Instant,
}

enum State {
    Down { retry_at: Instant },
    Up(Open),
}

pub struct Connection {
    path: PathBuf,
    state: State,
    retry: Duration,
}

impl Connection {
    pub fn new(path: PathBuf, now: Instant) -> Self {
        Self { path, state: State::Down { retry_at: now }, retry: FIRST_RETRY }
    }

    /// Dials this socket of the same folder from now on.
    pub fn move_to(&mut self, name: &str) {
        self.path.set_file_name(name);
    }

    /// The socket, while there is one.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Up(open) => Some(open.socket.as_fd()),
            State::Down { .. } => None,
        }
    }

    /// Whether a runner is there that has answered the greeting.
    pub fn is_live(&self) -> bool {
        matches!(&self.state, State::Up(Open { live: true, .. }))
    }

    /// Whether control frames wait for the socket.
    pub fn has_mail(&self) -> bool {
        matches!(&self.state, State::Up(open) if !open.outbox.is_empty())
    }

    /// When [`Connection::step`] has to be called next, if nothing else happens.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Down { retry_at } => Some(*retry_at),
            State::Up(Open { live: false, opened, .. }) => Some(*opened + HANDSHAKE),
            State::Up(_) => None,
        }
    }

    /// Dials if it is time to; true if a connection was made, which must be greeted.
    pub fn step(&mut self, now: Instant) -> bool {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return false;
        }
        if let State::Up(_) = self.state {
            self.hang_up(now);
            return false;
        }
        match dial(&self.path) {
            Ok(socket) => {
                let (inbox, outbox) = (Vec::new(), Vec::new());
                self.state = State::Up(Open { socket, inbox, outbox, live: false, opened: now });
                true
            }
            // Absent, refused, or its queue is full: a runner may come yet, and the caller
            // knows how long it may take.
            Err(_) => {
                self.hang_up(now);
                false
            }
        }
    }

    /// The runner has answered the greeting.
    pub fn set_live(&mut self) {
        self.retry = FIRST_RETRY;
        if let State::Up(open) = &mut self.state {
            open.live = true;
        }
    }

    /// Drops the connection; it is dialled again after a while.
    pub fn hang_up(&mut self, now: Instant) {
        self.state = State::Down { retry_at: now + self.retry };
        self.retry = (self.retry * 2).min(LAST_RETRY);
    }

    /// Queues a control frame. Never to be called between the parts of an output frame.
    ///
    /// # Errors
    /// When the frame is too long.
    pub fn post(&mut self, frame: &FromShim) -> io::Result<()> {
        if let State::Up(open) = &mut self.state {
            open.outbox.extend_from_slice(&frame.encode()?);
        }
        Ok(())
    }

    /// Writes queued control frames; true if none is left.
    ///
    /// # Errors
    /// When the runner is gone.
    pub fn write_mail(&mut self) -> rustix::io::Result<bool> {
        let State::Up(open) = &mut self.state else { return Ok(true) };
        while !open.outbox.is_empty() {
            match rustix::io::write(&open.socket, &open.outbox) {
                Ok(count) => drop(open.outbox.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Reads what is there.
    pub fn receive(&mut self) -> Received {
        let mut received = Received { frames: Vec::new(), malformed: None, closed: false };
        let State::Up(open) = &mut self.state else { return received };
        // No more than one frame's length at a time, so that a flood cannot fill the memory.
        while open.inbox.len() < 4 + protocol::MAX_FRAME {
            open.inbox.reserve(READ_BYTES);
            match rustix::io::read(&open.socket, spare_capacity(&mut open.inbox)) {
                Ok(0) => received.closed = true,
                Ok(_) | Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {}
                Err(_) => received.closed = true,
            }
            break;
        }
        match take_frames(&mut open.inbox, &mut received.frames) {
            Ok(()) => {}
            Err(error) => received.malformed = Some(error),
        }
        received
    }
}

fn dial(path: &PathBuf) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Moves all whole frames out of `inbox`; those before a malformed one are kept.
fn take_frames(inbox: &mut Vec<u8>, frames: &mut Vec<FromRunner>) -> io::Result<()> {
    let mut taken = 0;
    while let Some((prefix, rest)) = inbox[taken..].split_first_chunk::<4>() {
        let length = protocol::frame_length(*prefix)?;
        let Some(body) = rest.get(..length) else { break };
        frames.push(FromRunner::decode(body)?);
        taken += prefix.len() + length;
    }
    if taken == inbox.len() {
        // Not cleared: a job's worth of memory is never needed again.
        *inbox = Vec::new();
    } else {
        inbox.drain(..taken);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kage_shim::protocol::Offsets;

    use super::*;

    #[test]
    fn frames_are_taken_at_every_cut() {
        let sent = [FromRunner::Ack(Offsets { stdout: 7, stderr: 9 }), FromRunner::Terminate];
        let bytes: Vec<u8> = sent.iter().flat_map(|frame| frame.encode().expect("short frames")).collect();
        for cut in 0..=bytes.len() {
            let (mut inbox, mut frames) = (bytes[..cut].to_vec(), Vec::new());
            take_frames(&mut inbox, &mut frames).expect("well-formed frames");
            inbox.extend_from_slice(&bytes[cut..]);
            take_frames(&mut inbox, &mut frames).expect("well-formed frames");
            assert!(frames == sent, "cut at {cut}");
            assert!(inbox.is_empty());
        }
    }

    #[test]
    fn a_malformed_frame_is_told_from_an_unfinished_one() {
        for bytes in [&[0, 0, 0, 0][..], &[255, 0, 0, 0], &[0, 0, 0, 1, 99], &[0, 0, 0, 3, 18, b'{', b'}']] {
            assert!(take_frames(&mut bytes.to_vec(), &mut Vec::new()).is_err(), "{bytes:?}");
        }
    }
}
