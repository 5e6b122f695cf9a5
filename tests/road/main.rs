//! The road from an HTTP request to a branch, as a user sees it: real `kage` processes, a real engine, a real
//! Postgres, real git. Nothing of ours is replaced by a double.

mod access;
mod apart;
mod api;
mod audit;
#[path = "../sandbox/bench.rs"]
mod bench;
mod bounds;
mod calls;
mod cancel;
mod connections;
mod containment;
mod edge;
mod edge_tls;
mod ends;
mod events;
mod fuzzed;
mod golden;
mod host;
mod hostile_output;
mod hostile_results;
mod hostile_sources;
mod keys;
mod limits;
mod migrations;
mod models;
mod names;
mod odd_requests;
#[expect(dead_code, reason = "shared with the test program of faults, which needs other parts of it")]
mod own_engine;
mod prompts;
mod quarantine;
mod quotas;
mod refusals;
mod remapped;
mod repositories;
mod revoked_meanwhile;
mod road;
mod runtimes;
mod secrets;
mod server;
mod sessions;
mod sign_in;
mod streams;
mod submit;
mod support;
mod terminal;
mod traces;
mod upgrade;
mod upgrade_load;
mod watch;
mod webhooks;
mod whole;
