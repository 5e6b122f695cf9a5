//! The server over real connections.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod clients;
mod conversations;
mod faults;
mod program;
mod support;
