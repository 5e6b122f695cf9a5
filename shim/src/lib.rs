//! What `kage-shim` (PID 1 of a sandbox) and the runner say to each other.
//!
//! The runner listens on a Unix socket in the run's own folder; the shim connects.
//! Whoever connects first, before the CLI exists, can only be the shim: that first
//! connection is given the job and a session secret, and every later connection
//! must show the secret. All else (a CLI that finds the socket) is dropped.
//!
//! ```text
//! first time    shim: Hello(no session)    runner: Job          shim: Output*, Exited
//! after a break shim: Hello(session)       runner: Resume       shim: Output* from there, Exited
//! throughout    runner: Ack (committed offsets), Terminate      at the end runner: Release
//! ```
//!
//! Output is kept by the shim until it is acknowledged, so a runner that dies loses
//! nothing; when the buffer is full the CLI's own pipe blocks.

pub mod protocol;
