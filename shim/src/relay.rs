//! One connection of the bridge: bytes in both directions, each with its own end.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

/// Bytes on their way in one direction; then its sender has to wait.
const BUFFER: usize = 64 * 1024;

/// Buffers that are carried before it is another connection's turn.
const ROUNDS: usize = 8;

/// A gateway that is started anew binds the same socket again: so long a connection waits for it.
const DIAL_WITHIN: Duration = Duration::from_secs(10);
const DIAL_PAUSE: Duration = Duration::from_millis(50);

/// What one side sends to the other.
struct Direction {
    /// None while nothing is on its way: idle connections cost no buffer.
    bytes: Vec<u8>,
    written: usize,
    /// The sender has sent its last byte.
    ended: bool,
    /// The receiver was told so.
    told: bool,
}

impl Direction {
    const fn new() -> Self {
        Self { bytes: Vec::new(), written: 0, ended: false, told: false }
    }

    /// Only an empty buffer is filled again: a read then never leaves a few bytes of room to be read alone.
    fn wants_to_read(&self) -> bool {
        !self.ended && self.bytes.is_empty()
    }

    fn wants_to_write(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Moves what can be moved; an error ends the connection.
    fn carry(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<()> {
        for _ in 0..ROUNDS {
            if self.wants_to_read() && !self.read(from)? {
                return Ok(());
            }
            if self.wants_to_write() && !self.write(to)? {
                return Ok(());
            }
            if self.ended && !self.told {
                self.told = true;
                match rustix::net::shutdown(to, Shutdown::Write) {
                    Ok(()) | Err(Errno::NOTCONN) => {}
                    Err(error) => return Err(error),
                }
            }
            if self.ended {
                break;
            }
        }
        Ok(())
    }

    /// False if there is nothing to read now.
    fn read(&mut self, from: BorrowedFd<'_>) -> rustix::io::Result<bool> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize(BUFFER, 0);
        loop {
            match rustix::io::read(from, &mut bytes[..]) {
                Ok(0) => self.ended = true,
                Ok(count) => {
                    bytes.truncate(count);
                    (self.bytes, self.written) = (bytes, 0);
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error),
            }
            return Ok(true);
        }
    }

    /// False if the receiver takes no more now.
    fn write(&mut self, to: BorrowedFd<'_>) -> rustix::io::Result<bool> {
        while let Some(rest) = self.bytes.get(self.written..).filter(|rest| !rest.is_empty()) {
            match rustix::io::write(to, rest) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        Ok(true)
    }
}

enum Gateway {
    Dialling { next: Instant, give_up: Instant },
    Connected(OwnedFd),
}

pub struct Relay {
    client: TcpStream,
    gateway: Gateway,
    up: Direction,
    down: Direction,
}

impl Relay {
    /// # Errors
    /// When the client is gone already.
    pub fn new(client: TcpStream, now: Instant) -> io::Result<Self> {
        client.set_nonblocking(true)?;
        // A stream of short events must not wait for one another.
        client.set_nodelay(true)?;
        let gateway = Gateway::Dialling { next: now, give_up: now + DIAL_WITHIN };
        Ok(Self { client, gateway, up: Direction::new(), down: Direction::new() })
    }

    /// What it waits for; nothing for a side that it wants nothing of.
    pub fn wants(&self) -> [(BorrowedFd<'_>, PollFlags); 2] {
        let flags = |reads: bool, writes: bool| {
            let read = if reads { PollFlags::IN } else { PollFlags::empty() };
            read | if writes { PollFlags::OUT } else { PollFlags::empty() }
        };
        let client = self.client.as_fd();
        match &self.gateway {
            Gateway::Dialling { .. } => [(client, PollFlags::empty()); 2],
            Gateway::Connected(gateway) => [
                (client, flags(self.up.wants_to_read(), self.down.wants_to_write())),
                (gateway.as_fd(), flags(self.down.wants_to_read(), self.up.wants_to_write())),
            ],
        }
    }

    /// When [`Relay::step`] has to be called next, if nothing else happens.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.gateway {
            Gateway::Dialling { next, .. } => Some(*next),
            Gateway::Connected(_) => None,
        }
    }

    /// Does what can be done; false when the connection is over.
    pub fn step(&mut self, socket: &Path, now: Instant) -> bool {
        if let Gateway::Dialling { next, give_up } = self.gateway {
            if now < next {
                return true;
            }
            match dial(socket) {
                Ok(gateway) => self.gateway = Gateway::Connected(gateway),
                Err(_) if now >= give_up => return false,
                // Absent, refused, or its queue is full.
                Err(_) => {
                    self.gateway = Gateway::Dialling { next: now + DIAL_PAUSE, give_up };
                    return true;
                }
            }
        }
        let Gateway::Connected(gateway) = &self.gateway else { return true };
        let (client, gateway) = (self.client.as_fd(), gateway.as_fd());
        let carried = self.up.carry(client, gateway).and_then(|()| self.down.carry(gateway, client));
        carried.is_ok() && !(self.up.told && self.down.told)
    }
}

fn dial(path: &Path) -> rustix::io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}
