//! Where secrets come from, and how they are kept up to date. A secret is given by a reference; its value is in memory
//! alone, in a `SecretString`, and in no message of this room.
//!
//! ```text
//! source   what a setting says: env:, file:, exec:, vault:, literal:
//! local    reads what this host has      command  the program of exec:      vault   HashiCorp Vault, OpenBao
//! resolver reads any of them             watched  a secret with its last good value      reload  reads them again
//! ```

pub mod command;
pub mod error;
pub mod local;
pub mod reload;
pub mod resolver;
pub mod source;
pub mod vault;
pub mod watched;

#[cfg(test)]
mod vault_tests;
