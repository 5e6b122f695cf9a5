//! Refused system calls, as they happen.
//!
//! The kernel holds a call that the profile marks until we have answered it ([`crate::sandbox::seccomp`]). The runtime
//! connects to [`listener`] while it starts a sandbox and hands the kernel's descriptor over ([`handover`]); [`watch`]
//! answers, always with an error; [`tally`] counts, so that a million refusals are a few rows; [`words`] says which
//! form of a call it was.
//!
//! Nothing of a caller's memory is read, and no call is ever let pass. When we are gone the kernel itself refuses.

pub mod handover;
pub mod listener;
pub mod tally;
pub mod watch;
pub mod words;
