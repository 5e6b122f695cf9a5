//! The only way out: a TCP port on loopback whose connections are carried to a Unix socket, byte for byte.
//!
//! A thread of its own, so that a busy model stream and a flood of output don't hold each other up. It ends, with
//! every connection, when the [`Bridge`] is dropped.

use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kage_shim::protocol;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::relay::Relay;
use crate::timespec::timespec;

/// Connections at a time; the next wait in the kernel's queue.
const MAX_RELAYS: usize = 64;

/// After a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(10);

/// Carries connections for as long as it lives.
pub struct Bridge {
    /// Its end wakes and ends the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Bridge {
    /// Listens on loopback; the port is taken when this returns.
    ///
    /// # Errors
    /// When the port is taken by somebody else, or the kernel gives no thread.
    pub fn open(wanted: &protocol::Bridge) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted.port))?;
        listener.set_nonblocking(true)?;
        let (stopped, stop) = io::pipe()?;
        let carrier =
            Carrier { listener, socket: PathBuf::from(&wanted.socket), relays: Vec::new(), stopped };
        let thread = std::thread::Builder::new().name("bridge".to_owned()).spawn(|| carrier.run())?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.stop = None;
        // It waits for nothing but its poll, which has just been woken. A panic there was reported by itself.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Carrier {
    listener: TcpListener,
    socket: PathBuf,
    relays: Vec<Relay>,
    stopped: PipeReader,
}

impl Carrier {
    fn run(mut self) {
        loop {
            match self.wait() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    // Without poll there is no way to go on; the CLI sees its connections end.
                    let _ = writeln!(io::stderr(), "kage-shim: the bridge ends: {error}");
                    return;
                }
            }
            self.accept();
            let now = Instant::now();
            self.relays.retain_mut(|relay| relay.step(&self.socket, now));
        }
    }

    fn accepts(&self) -> bool {
        self.relays.len() < MAX_RELAYS
    }

    /// Until something can be done; false when the bridge is to end.
    fn wait(&self) -> rustix::io::Result<bool> {
        let mut polled = Vec::with_capacity(2 + 2 * self.relays.len());
        polled.push(PollFd::new(&self.stopped, PollFlags::IN));
        if self.accepts() {
            polled.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        for (fd, flags) in self.relays.iter().flat_map(Relay::wants) {
            // A descriptor that is not wanted must not be polled at all: its end would be reported again and again.
            if !flags.is_empty() {
                polled.push(PollFd::from_borrowed_fd(fd, flags));
            }
        }
        let now = Instant::now();
        let due = self.relays.iter().filter_map(Relay::deadline).min();
        let timeout = due.map(|due| timespec(due.saturating_duration_since(now)));
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(_) => Ok(polled[0].revents().is_empty()),
            Err(Errno::INTR) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn accept(&mut self) {
        while self.accepts() {
            match self.listener.accept() {
                Ok((client, _)) => self.relays.extend(Relay::new(client, Instant::now()).ok()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Out of descriptors: the queue is still full, and poll would not wait.
                Err(_) => {
                    std::thread::sleep(PAUSE);
                    return;
                }
            }
        }
    }
}
