//! The CLI's standard input: written as the CLI reads it, never waited for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// Text that is on its way to the CLI.
pub struct Feed {
    /// Closed as soon as all is written, or the CLI no longer reads.
    pipe: Option<OwnedFd>,
    bytes: Vec<u8>,
    written: usize,
}

impl Feed {
    /// `pipe` must be non-blocking.
    pub fn new(pipe: OwnedFd, bytes: Vec<u8>) -> Self {
        let mut feed = Self { pipe: Some(pipe), bytes, written: 0 };
        feed.write();
        feed
    }

    /// The pipe, while there is something to write.
    pub fn wants_to_write(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Writes what the pipe takes.
    pub fn write(&mut self) {
        while let (Some(pipe), Some(rest)) = (&self.pipe, self.bytes.get(self.written..)) {
            if rest.is_empty() {
                return self.close();
            }
            match rustix::io::write(pipe, rest) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // EPIPE: the CLI does not want it.
                Err(_) => return self.close(),
            }
        }
    }

    /// Closes the pipe and forgets the text.
    pub fn close(&mut self) {
        self.pipe = None;
        self.bytes = Vec::new();
        self.written = 0;
    }
}
