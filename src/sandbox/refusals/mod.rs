//! Refused system calls, as they happen.
//!
//! The kernel holds a call that the profile marks until somebody has answered it ([`crate::sandbox::seccomp`]). The runtime
//! connects to [`listener`] while it starts a sandbox and hands the kernel's descriptor over ([`handover`]); [`watch`]
//! counts and answers, always with an error; [`lane`] holds answers back in a flood, never the count; [`tally`] counts, so
//! that a million refusals are a few rows; [`words`] says which form of a call it was.
//!
//! For runs all of this is done by a process of its own, the keeper (a role, and a room of its own), which goes on when the runner
//! dies: [`client`] is the runner's side of it, [`protocol`] what they say to each other. The conformance kit, whose
//! sandboxes end with it, listens by itself.
//!
//! A call that is refused is never let pass, and nothing of its caller's memory is read. When nobody is there the kernel
//! itself refuses.
//!
//! `connect` and `sendto` are another matter: they are allowed, whatever the address, because the sandbox's network
//! has nothing but its own loopback. Where addresses are recorded, [`address`] reads the one that is passed (at most 128
//! bytes), and the kernel goes on. The caller may change it in between; it gets nowhere either way.

pub mod address;
pub mod client;
pub mod handover;
pub mod lane;
pub mod listener;
pub mod protocol;
pub mod tally;
pub mod watch;
pub mod words;
