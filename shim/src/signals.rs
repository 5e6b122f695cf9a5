//! Signals as events of the poll loop.
//!
//! They are blocked and read from a descriptor: no handler runs. A program in the sandbox may send many at once, and
//! handlers that interrupt one another would fill the small stack that they run on, which ends the process. There are
//! handlers all the same, because `execve` gives the CLI the default action of such signals back, even if whoever
//! started the shim had them ignored.
//!
//! SIGTERM ends the run, and so it matters who sends it. As PID 1 the shim obeys one from outside its namespace alone,
//! which has no sender's number in here. A program in the sandbox can send it too, being the same user: such a run would
//! choose its own end, or to be tried again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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

/// `kill` and its like have made it (asm-generic/siginfo.h). The kernel lets no process pass this off with a false sender.
const SI_USER: i32 = 0;

pub struct Signals {
    /// All of them, with their senders.
    sent: SignalFd,
}

fn all() -> SigSet {
    let numbers = WATCHED.iter().map(|(number, _)| *number).chain(SWALLOWED);
    numbers.filter_map(|number| signal::Signal::try_from(number).ok()).collect()
}

impl Signals {
    /// To be called before there is another thread.
    ///
    /// # Errors
    /// When the kernel refuses a handler or the descriptor.
    pub fn install() -> io::Result<Self> {
        all().thread_block()?;
        let ignored = Arc::new(AtomicBool::new(false));
        for number in WATCHED.iter().map(|(number, _)| *number).chain(SWALLOWED) {
            signal_hook::flag::register(number, Arc::clone(&ignored))?;
        }
        Ok(Self { sent: SignalFd::with_flags(&all(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)? })
    }

    /// Becomes readable when a signal has come.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.sent.as_fd()
    }

    /// What came since the last call.
    pub fn take(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        // So many at a time: who sends without end does not hold the loop up.
        for _ in 0..64 {
            let Ok(Some(sent)) = self.sent.read_signal() else { break };
            let watched = WATCHED.iter().find(|(number, _)| u32::try_from(*number) == Ok(sent.ssi_signo));
            match watched {
                Some((_, Event::Terminate)) if getpid().is_init() && !is_from_outside(&sent) => {}
                Some((_, event)) if events.contains(event) => {}
                Some((_, event)) => events.push(*event),
                None => {}
            }
        }
        events
    }
}

/// Starts a program that is to have no signal blocked: it inherits our mask. What comes in between is lost; an engine
/// that sends SIGTERM goes on to SIGKILL.
pub fn while_unblocked<T>(start: impl FnOnce() -> T) -> T {
    // Neither can fail with a set of ours.
    let _ = all().thread_unblock();
    let started = start();
    let _ = all().thread_block();
    started
}

/// Whether whoever sent it is in no PID namespace that we see. Signals that descriptors and timers send have other codes.
fn is_from_outside(sent: &siginfo) -> bool {
    sent.ssi_code == SI_USER && sent.ssi_pid == 0
}
