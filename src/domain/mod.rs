//! The nouns of Kage Bunshin. Nothing here knows a database, an engine or HTTP.

pub mod access;
pub mod address;
pub mod api_key;
pub mod audit;
pub mod event;
pub mod judgement;
pub mod limits;
pub mod model;
pub mod model_name;
pub mod name;
pub mod person;
pub mod prompt;
pub mod repository;
pub mod run;
pub mod runtime;
pub mod security_event;
pub mod session;
pub mod task;
pub mod verdict;
