//! Signals as events of the poll loop.
//!
//! PID 1 has no default actions, so each signal needs a handler to be noticed at all.
//! A handler also means that `execve` gives the CLI the default action back, even if
//! whoever started the shim had the signal ignored.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;
use signal_hook::consts;

/// What a signal asks of the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A child may be waiting to be reaped.
    ChildEnded,
    /// End the run.
    Terminate,
    /// Meant for the CLI.
    Forward(Signal),
}

const WATCHED: [(i32, Event); 8] = [
    (consts::SIGCHLD, Event::ChildEnded),
    (consts::SIGTERM, Event::Terminate),
    (consts::SIGINT, Event::Forward(Signal::INT)),
    (consts::SIGHUP, Event::Forward(Signal::HUP)),
    (consts::SIGQUIT, Event::Forward(Signal::QUIT)),
    (consts::SIGUSR1, Event::Forward(Signal::USR1)),
    (consts::SIGUSR2, Event::Forward(Signal::USR2)),
    (consts::SIGWINCH, Event::Forward(Signal::WINCH)),
];

/// Of no interest, but they must neither end or stop the shim nor be ignored in the CLI.
const SWALLOWED: [i32; 11] = [
    consts::SIGALRM,
    consts::SIGCONT,
    consts::SIGIO,
    consts::SIGPROF,
    consts::SIGTSTP,
    consts::SIGTTIN,
    consts::SIGTTOU,
    consts::SIGURG,
    consts::SIGVTALRM,
    consts::SIGXCPU,
    consts::SIGXFSZ,
];

pub struct Signals {
    wake: UnixStream,
    raised: Vec<(Arc<AtomicBool>, Event)>,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// When the kernel refuses a handler or the pipe that wakes the loop.
    pub fn install() -> io::Result<Self> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let mut raised = Vec::with_capacity(WATCHED.len());
        for (number, event) in WATCHED {
            let flag = Arc::new(AtomicBool::new(false));
            // Handlers run in the order of registration: the flag is up before the loop wakes.
            signal_hook::flag::register(number, Arc::clone(&flag))?;
            signal_hook::low_level::pipe::register(number, waker.try_clone()?)?;
            raised.push((flag, event));
        }
        let ignored = Arc::new(AtomicBool::new(false));
        for number in SWALLOWED {
            signal_hook::flag::register(number, Arc::clone(&ignored))?;
        }
        Ok(Self { wake, raised })
    }

    /// Becomes readable when a signal has come.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// What came since the last call; repeats of one signal count once.
    pub fn take(&mut self) -> Vec<Event> {
        let mut wakes = [0; 64];
        while matches!(self.wake.read(&mut wakes), Ok(count) if count > 0) {}
        let raised = self.raised.iter().filter(|(flag, _)| flag.swap(false, Ordering::SeqCst));
        raised.map(|&(_, event)| event).collect()
    }
}
