//! The kernel's seccomp user notification (seccomp_unotify(2)), behind safe types.
//!
//! A process makes a call that its filter answers with `SECCOMP_RET_USER_NOTIF`; it waits until the holder of the
//! filter's [`Listener`] says what the call returns. A listener that is closed answers ENOSYS for ever.
//!
//! Everything that needs `unsafe` is in `kernel`, one call in [`memory`] and one line in [`ready`].

mod kernel;
pub mod memory;
pub mod ready;

use std::io;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::io::Errno;

/// The descriptor of a filter that asks us.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// A call that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Names this very call in answers; never used again.
    pub id: u64,
    /// The thread that made it, in our own PID namespace; 0 if it is not seen there.
    pub thread: u32,
    pub number: i32,
    /// `AUDIT_ARCH_…` of linux/audit.h.
    pub architecture: u32,
    /// As the caller passed them. What a pointer points at may change at any time.
    pub arguments: [u64; 6],
}

/// What may be waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    Call,
    Nothing,
    /// No process has the filter any more: nothing will come.
    Over,
}

impl Listener {
    /// Takes a descriptor that somebody passed.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if it is no seccomp listener.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))?;
        match link.to_str() {
            Some("anon_inode:seccomp notify" | "anon_inode:[seccomp notify]") => Ok(Self(descriptor)),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is no seccomp listener", link.display()),
            )),
        }
    }

    /// Looks without waiting.
    ///
    /// # Errors
    /// The kernel's.
    pub fn waiting(&self) -> io::Result<Waiting> {
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut polled, Some(&now)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let seen = polled[0].revents();
        Ok(if seen.contains(PollFlags::IN) {
            Waiting::Call
        } else if seen.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            Waiting::Over
        } else {
            Waiting::Nothing
        })
    }

    /// The next call; waits for one if [`Listener::waiting`] has not just seen one. `None` if its caller has died since.
    ///
    /// # Errors
    /// The kernel's.
    pub fn next(&self) -> io::Result<Option<Call>> {
        match kernel::receive(self.0.as_fd()) {
            Ok(received) => Ok(Some(received)),
            Err(Errno::NOENT | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the call fail with an error number. False if its caller does not wait any more.
    ///
    /// # Errors
    /// The kernel's; [`io::ErrorKind::InvalidInput`] for a number that is no error.
    pub fn refuse(&self, call: u64, errno: u16) -> io::Result<bool> {
        if !(1..4096).contains(&errno) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        gone_is_no_error(kernel::send(self.0.as_fd(), call, -i32::from(errno), 0))
    }

    /// Lets the kernel carry the call out, with whatever its arguments point at **by then**. Only for a call that may be
    /// made with any arguments, and is only looked at. False if its caller does not wait any more.
    ///
    /// # Errors
    /// The kernel's.
    pub fn let_pass(&self, call: u64) -> io::Result<bool> {
        gone_is_no_error(kernel::send(self.0.as_fd(), call, 0, kernel::FLAG_CONTINUE))
    }

    /// Whether the call still waits: so its thread's id still means the thread that made it.
    pub fn still_waits(&self, call: u64) -> bool {
        kernel::is_valid(self.0.as_fd(), call).is_ok()
    }
}

fn gone_is_no_error(sent: Result<(), Errno>) -> io::Result<bool> {
    match sent {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
