//! Bytes of files that several threads hold in memory at once.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
pub(crate) struct InFlight {
    limit: u64,
    held: Mutex<u64>,
    freed: Condvar,
}

impl InFlight {
    pub fn new(limit: u64) -> InFlight {
        InFlight { limit, held: Mutex::new(0), freed: Condvar::new() }
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Waits until `bytes` more may be held; `None`: they never may.
    pub fn take(&self, bytes: u64) -> Option<Held<'_>> {
        if bytes > self.limit {
            return None;
        }
        let mut held = self.lock();
        while *held + bytes > self.limit {
            held = self.freed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        *held += bytes;
        Some(Held { of: self, bytes })
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Given back when it is dropped.
pub(crate) struct Held<'a> {
    of: &'a InFlight,
    bytes: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.of.lock() -= self.bytes;
        self.of.freed.notify_all();
    }
}
