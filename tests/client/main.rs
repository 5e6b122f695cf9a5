//! The client against a server that misbehaves on purpose, in this process, over loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod alone;
mod binary;
mod hostile;
mod requests;
mod samples;
mod server;
mod streams;
mod told;
