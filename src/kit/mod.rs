//! The conformance kit: `kage image check` and `kage image new`.
//!
//! ```text
//! check        which attempts are made, in which order
//! stage        what they share: engine, image, manifest, folders
//! attempt      one run of the CLI in the real sandbox, from the container's creation to its removal
//! observed     what was seen of it;  tree  processes  resolver  secrets: how
//! judge/*      from what was seen to items of the report
//! kept         what is left of an attempt for the reader
//! report       the items, in words and as JSON
//! scaffold     a folder to begin with
//! ```
//!
//! The sandbox is the runner's own: profile, seccomp table, shim, bridge, limits. Behind the bridge stands the scripted
//! model server itself and no `kage gateway`: that one needs Postgres, and an image is checked before there is
//! an installation that could use it. What the gateway decides is a pure function, and is taken from where the gateway
//! takes it: every request goes through `dialect::route` and `dialect::request`, and refusals are the answers of
//! `dialect::answer`.

pub mod attempt;
pub mod check;
pub mod error;
pub mod judge;
pub mod kept;
pub mod observed;
pub mod processes;
pub mod report;
pub mod resolver;
pub mod scaffold;
pub mod secrets;
pub mod stage;
pub mod tree;
