//! Kage Bunshin: hands coding tasks to AI command-line agents without trusting them.
//!
//! ```text
//! cli                                one file per command; only `cli` knows every role
//! api  runner  gateway  sequencer  notifier  retention  client   roles: they never import one another; they meet in Postgres (or over HTTP)
//! backup                             one cut of database and repositories, and the way back; no role
//! keeper                             a role too: it holds the listeners for refused calls; the runner asks it over a socket
//! kit                                the conformance kit for CLI images
//! db  sandbox  git  disk  image  config    adapters
//! oidc                               who signs in: we as a relying party of an OpenID provider
//! secret  redact                     where secrets come from; what looks like one, kept out of what is stored
//! dialect                            what the model protocols say: pure, bytes in, bytes out
//! trail                              the tamper-evident log: pure; entries, tree, checkpoints, proofs
//! wire                               the public JSON, shared by api, client and the stored events
//! metrics                            what is counted and measured, and the page that shows it
//! traces                             a trace from the request to the container, and its way to a collector
//! domain  lifecycle  telemetry       nouns and process matters; they know nothing of ours
//! ```

pub mod api;
pub mod backup;
pub mod cli;
pub mod client;
pub mod config;
pub mod db;
pub mod dialect;
pub mod disk;
pub mod domain;
pub mod gateway;
pub mod git;
pub mod image;
pub mod keeper;
pub mod kit;
pub mod lifecycle;
pub mod metrics;
pub mod notifier;
pub mod oidc;
pub mod redact;
pub mod retention;
pub mod runner;
pub mod sandbox;
pub mod secret;
pub mod sequencer;
pub mod telemetry;
pub mod traces;
pub mod trail;
pub mod wire;
