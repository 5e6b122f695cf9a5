//! What is kept, for how long, and what is said when it is gone: real processes, a real Postgres, a real engine.

mod ages;
mod copies;
mod moved;
mod rest;
mod rights;
mod room;
mod sizes;
#[path = "../road/support/mod.rs"]
#[expect(dead_code, reason = "shared with other test programs, which need other parts of it")]
mod support;
mod world;
