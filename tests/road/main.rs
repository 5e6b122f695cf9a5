//! The road from an HTTP request to a branch, as a user sees it: real `kage` processes, a real engine, a real
//! Postgres, real git. Nothing of ours is replaced by a double.

mod access;
mod apart;
mod api;
mod audit;
#[path = "../sandbox/bench.rs"]
mod bench;
mod calls;
mod cancel;
mod containment;
mod ends;
mod golden;
mod host;
mod keys;
mod limits;
mod migrations;
mod models;
mod names;
mod prompts;
mod quarantine;
mod quotas;
mod refusals;
mod repositories;
mod road;
mod runtimes;
mod server;
mod streams;
mod submit;
mod support;
mod terminal;
