//! A courtesy copy of the CLI's output on the shim's own streams, for the engine's log. What does not go
//! without waiting is left out: the log is no source of truth, and must never hold the CLI up.

use kage_shim::protocol::Stream;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

pub struct Copies;

impl Copies {
    /// Makes the shim's own streams such that writing never waits.
    pub fn open() -> Self {
        let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
        // Cannot fail on an open descriptor; on a closed one the writes fail as well.
        let _ = fcntl_getfl(&stdout).and_then(|flags| fcntl_setfl(&stdout, flags | OFlags::NONBLOCK));
        let _ = fcntl_getfl(&stderr).and_then(|flags| fcntl_setfl(&stderr, flags | OFlags::NONBLOCK));
        Self
    }

    pub fn write(&self, stream: Stream, bytes: &[u8]) {
        let _ = match stream {
            Stream::Stdout => rustix::io::write(std::io::stdout(), bytes),
            Stream::Stderr => rustix::io::write(std::io::stderr(), bytes),
        };
    }
}
