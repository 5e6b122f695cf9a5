//! What `kage-shim` (PID 1 of a sandbox) and the runner say to each other.
//!
//! The runner listens on a Unix socket in the run's own folder; the shim connects.
//! Whoever connects first, before the CLI exists, can only be the shim: that first
//! connection is given the job and a session secret, and every later connection
//! must show the secret. All else (a CLI that finds the socket) is dropped.
//!
//! ```text
//! first time    shim: Hello(facts)         runner: Job          shim: Output*, Exited
//! after a break shim: Hello(session)       runner: Resume       shim: Output* from there, Exited
//! throughout    runner: Ack (committed offsets), Terminate      at the end runner: Release
//! ```
//!
//! Output is kept by the shim until it is acknowledged, so a runner that dies loses
//! nothing; when the buffer is full the CLI's own pipe blocks.
//!
//! - The runner takes the socket's file away once it has accepted, and binds it anew when
//!   it comes back. The shim dials until then, every 50 to 500 ms.
//! - `Started` comes once, on the connection that brought the job, and not at all if the
//!   CLI could not be started: then `Exited` says why.
//! - `Exited` comes after the last output byte of a connection, and only when no process
//!   is left. It is sent again after each reconnect, and `Release` counts only after it, on
//!   the same connection.
//! - Only whole frames that were sent may be acknowledged. What breaks these rules (a second
//!   job, offsets that were not sent or are gone, a malformed frame) ends the CLI, and the
//!   shim with status 125.
//! - With a [`protocol::Bridge`] the shim listens on loopback before the CLI starts, and carries every connection to
//!   the named socket until the run begins to end.
//! - Without a runner for `orphan_secs` the CLI is ended. What it left is then kept as long
//!   again for a late runner, and then the shim ends too.

pub mod containment;
pub mod protocol;
