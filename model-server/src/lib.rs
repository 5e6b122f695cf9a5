//! A model server that plays a script instead of asking a model: for tests, demos and the conformance kit.
//!
//! ```text
//! server                     listens, routes, answers; recorder keeps what came
//! dialect/*                  one file a dialect: request -> conversation, reply -> bytes
//! play                       which turn of the script answers this conversation, and how
//! tools                      a purpose (`write_file`, `shell`) -> the tool that this CLI offers for it
//! script  scenario  fault    the script as data
//! ```
//!
//! **Nothing is remembered between requests**: which turn comes next is read out of the request (the calls that it
//! already holds), so many CLIs can talk to one server at once and a retry gets the same answer. The only memory is
//! the count of a fault that is to happen a limited number of times.

pub mod answer;
pub mod conversation;
pub mod delivery;
pub mod dialect;
pub mod fault;
pub mod play;
pub mod recorder;
pub mod reply;
pub mod routes;
pub mod scenario;
pub mod script;
pub mod server;
pub mod tools;
