//! Signals as events of the poll loop.
//!
//! PID 1 has no default actions, so each signal needs a handler to be noticed at all.
//! A handler also means that `execve` gives the CLI the default action back, even if
//! whoever started the shim had the signal ignored.
//!
//! SIGTERM ends the run, and so it matters who sends it. As PID 1 the shim obeys one from outside its namespace alone,
//! which has no sender's number in here. A program in the sandbox can send it too, being the same user: such a run would
//! choose its own end, or to be tried again.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal;
use nix::sys::signalfd::{SfdFlags, SigSet, SignalFd, siginfo};
use rustix::process::{Signal, getpid};
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

const WATCHED: [(i32, Event); 7] = [
    (consts::SIGCHLD, Event::ChildEnded),
    (consts::SIGINT, Event::Forward(Signal::INT)),
    (consts::SIGHUP, Event::Forward(Signal::HUP)),
    (consts::SIGQUIT, Event::Forward(Signal::QUIT)),
    (consts::SIGUSR1, Event::Forward(Signal::USR1)),
    (consts::SIGUSR2, Event::Forward(Signal::USR2)),
    (consts::SIGWINCH, Event::Forward(Signal::WINCH)),
];

/// Of no interest, but they must neither end or stop the shim nor be ignored in the CLI.
const SWALLOWED: [i32; 12] = [
    consts::SIGALRM,
    consts::SIGCONT,
    consts::SIGIO,
    consts::SIGPROF,
    consts::SIGTERM,
    consts::SIGTSTP,
    consts::SIGTTIN,
    consts::SIGTTOU,
    consts::SIGURG,
    consts::SIGVTALRM,
    consts::SIGXCPU,
    consts::SIGXFSZ,
];

/// `kill` and its like have made it (asm-generic/siginfo.h). The kernel lets no process pass this off with a false sender.
const SI_USER: i32 = 0;

pub struct Signals {
    wake: UnixStream,
    /// SIGTERM, with its sender.
    terminate: SignalFd,
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
        // Blocked before there is another thread.
        let terminate = SigSet::from(signal::SIGTERM);
        terminate.thread_block()?;
        let terminate = SignalFd::with_flags(&terminate, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { wake, terminate, raised })
    }

    /// Become readable when a signal has come.
    pub fn as_fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.wake.as_fd(), self.terminate.as_fd()]
    }

    /// What came since the last call; repeats of one signal count once.
    pub fn take(&mut self) -> Vec<Event> {
        let mut wakes = [0; 64];
        while matches!(self.wake.read(&mut wakes), Ok(count) if count > 0) {}
        let raised = self.raised.iter().filter(|(flag, _)| flag.swap(false, Ordering::SeqCst));
        let mut events: Vec<Event> = raised.map(|&(_, event)| event).collect();
        while let Ok(Some(sent)) = self.terminate.read_signal() {
            if !getpid().is_init() || is_from_outside(&sent) {
                events.push(Event::Terminate);
            }
        }
        events
    }
}

/// Starts a program that is to have SIGTERM unblocked: it inherits our mask. One that comes in between is lost; an engine
/// that sends it goes on to SIGKILL.
pub fn while_unblocked<T>(start: impl FnOnce() -> T) -> T {
    let terminate = SigSet::from(signal::SIGTERM);
    // Neither can fail with a set of ours.
    let _ = terminate.thread_unblock();
    let started = start();
    let _ = terminate.thread_block();
    started
}

/// Whether whoever sent it is in no PID namespace that we see. Signals that descriptors and timers send have other codes.
fn is_from_outside(sent: &siginfo) -> bool {
    sent.ssi_code == SI_USER && sent.ssi_pid == 0
}
