//! Configuration: environment over an optional TOML file. One file a section; no section knows another.

pub mod api;
pub mod client;
pub mod client_error;
pub mod database;
pub mod edge;
pub mod error;
pub mod gateway;
pub mod oidc;
mod own_file;
pub mod policy;
pub mod providers;
pub mod recorded;
pub mod retention;
pub mod runner;
pub mod secrets;
pub mod sequencer;
pub mod settings;
pub mod watch;
pub mod webhooks;
