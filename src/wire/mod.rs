//! The public JSON, shared by the API and the client, so that there is one truth for the wire.

pub mod audit;
pub mod containment;
pub mod event;
pub mod health;
pub mod key;
pub mod let_go;
pub mod moment;
pub mod object;
pub mod problem;
pub mod quarantine;
pub mod repository;
pub mod run;
pub mod security_event;
pub mod session;
pub mod task;
