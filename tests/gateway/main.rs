//! The gateway role as its neighbours see it: a run's socket on the one side, the scripted model server on the
//! other, rows in a real Postgres between it and the runner, with the rights of its own database role.

#![expect(clippy::unwrap_used, reason = "a test that cannot read what it needs fails")]

mod budgets;
mod content;
mod credentials;
mod faults;
mod grants;
mod keys;
mod limits;
mod network;
mod policy;
mod rights;
mod road;
mod smuggling;
mod support;
