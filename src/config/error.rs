//! What is wrong with a setting; every message names it.

use std::path::PathBuf;

use crate::secret::error::SecretError;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{name} is wrong: {problem}")]
    Invalid { name: String, problem: String },
    #[error("{name} is not set: {hint}")]
    Missing { name: &'static str, hint: &'static str },
    #[error("{name}: cannot read {path}: {source}", path = path.display())]
    File { name: String, path: PathBuf, source: std::io::Error },
    #[error("{path}: {problem}", path = path.display())]
    Toml { path: PathBuf, problem: String },
    #[error("{name}: {source}")]
    Secret { name: String, source: SecretError },
    #[error("unknown setting {name} (from {origin}){suggestion}")]
    Unknown { name: String, origin: String, suggestion: String },
}
