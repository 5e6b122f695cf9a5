//! Waiting for calls within a tokio runtime.

#![expect(
    unsafe_code,
    reason = "tokio cannot know that a descriptor stays open; the block says why this one does"
)]

use std::io;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::{Call, Listener, Waiting};

/// A [`Listener`] that a task can wait on.
#[derive(Debug)]
pub struct AsyncListener(AsyncFd<Listener>);

impl AsyncListener {
    /// Must be called within a runtime.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(listener: Listener) -> io::Result<Self> {
        // SAFETY: a `Listener` owns its descriptor, always gives the same one, and closes it only when dropped.
        let registered = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// The listener itself, to answer.
    pub fn get(&self) -> &Listener {
        self.0.get_ref()
    }

    /// The next call; `None` when no process has the filter any more. Never blocks the thread, may be dropped at any
    /// time, and is for one task alone.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn next(&self) -> io::Result<Option<Call>> {
        loop {
            match self.get().waiting()? {
                // Only we take calls: one that waits is taken at once, or its caller has died.
                Waiting::Call => match self.get().next()? {
                    Some(call) => return Ok(Some(call)),
                    None => continue,
                },
                Waiting::Over => return Ok(None),
                Waiting::Nothing => {}
            }
            let mut ready = self.0.readable().await?;
            if self.get().waiting()? == Waiting::Nothing {
                ready.clear_ready();
            }
        }
    }
}
