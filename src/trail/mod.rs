//! The tamper-evident trail: pure, without a database, a clock or a network.
//!
//! An entry has one canonical form (`canonical`); its hash is a leaf of an RFC 6962 tree (`tree`), whose stored
//! hashes are laid out as in C2SP tlog-tiles (`tile`, and `bundle` for the entries themselves). A checkpoint (`checkpoint`) is a signed note (`note`) that names the
//! tree's size and root. `follow` reads a log from its
//! beginning and names the first thing that is wrong; `export` is what leaves the house.

pub mod bundle;
pub mod canonical;
pub mod checkpoint;
pub mod error;
pub mod export;
pub mod follow;
pub mod note;
pub mod ocsf;
pub mod tile;
pub mod tree;
