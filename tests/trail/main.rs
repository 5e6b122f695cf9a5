//! The tamper-evident trail on a real Postgres: what an administrator of the database does is named, what crashes
//! is harmless, and the command line verifies offline.

#[path = "../road/support/database.rs"]
#[expect(dead_code, reason = "its other half is for tests of the road")]
mod database;
mod entries;
mod harmless;
mod monitor;
mod process;
mod rights;
mod support;
mod tampered;
mod tiles;
