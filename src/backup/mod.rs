//! Backups: a folder of files named by what is in them, and a manifest a backup that says which of them it is made of.
//!
//! ```text
//! latest              the name of the newest backup
//! backups/<name>.json a manifest; the name has its number, its time and its own SHA-256
//! objects/ab/abcd…    one piece: rows of a table, a part of a repository's file, or a backup's index
//! unfinished/         what a cut backup left; emptied by the next
//! lock                held while a backup is made
//! ```
//!
//! | module | idea |
//! | --- | --- |
//! | [`manifest`] | what a backup says of itself, in the open and sealed |
//! | [`store`] | the folder: files appear whole, a manifest last |
//! | [`seal`] | compression, `age`, and the name of a piece |
//! | [`pieces`] | where a stream of rows is cut, so that the next backup cuts it at the same places |
//! | [`make`] | one consistent cut of database and repositories |
//! | [`prune`] | earlier ones go, with the files that only they needed |
//! | `folder` | the data folder of a restore |
//! | [`verify`] | everything read and checked, nothing written |
//! | [`restore`] | all of it into an empty database and an empty data folder; nothing starts on a half of it |

pub mod error;
mod folder;
pub mod make;
pub mod manifest;
pub mod pieces;
pub mod prune;
pub mod restore;
pub mod seal;
pub mod store;
pub mod verify;
