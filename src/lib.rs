//! Kage Bunshin: hands coding tasks to AI command-line agents without trusting them.
//!
//! ```text
//! cli                          one file per command; only `cli` knows every role
//! api  runner  client          roles: they never import one another, they meet in Postgres (or over HTTP)
//! db  sandbox  git  image  wire  config     adapters
//! domain  lifecycle  telemetry              nouns and process matters; they know nothing of ours
//! ```

pub mod cli;
pub mod client;
pub mod config;
pub mod domain;
pub mod wire;
