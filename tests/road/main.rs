//! The road from an HTTP request to a branch, as a user sees it: real `kage` processes, a real engine, a real
//! Postgres, real git. Nothing of ours is replaced by a double.

mod road;
mod support;
