//! The real CLIs, unmodified, in the real sandbox: from a request to a branch, against the scripted model server.
//!
//! `./test` builds their images (`scripts/image clis`).

#[path = "../road/support/mod.rs"]
#[expect(dead_code, reason = "the road's tests use more of it")]
mod support;

mod models;
mod road;
