//! What can be wrong with a CLI image's folder, or go wrong while it is built.

use std::io;
use std::path::PathBuf;

use crate::sandbox::error::SandboxError;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    #[error("{path}: {error}", path = path.display())]
    File { path: PathBuf, error: io::Error },
    /// The text names line, column and field.
    #[error("{path}: {message}", path = path.display())]
    Manifest { path: PathBuf, message: String },
    #[error("build context {path}: {reason}", path = path.display())]
    Context { path: PathBuf, reason: String },
    #[error("{path} cannot serve as a build's certificates: {reason}", path = path.display())]
    Certificates { path: PathBuf, reason: &'static str },
    #[error("the image could not be built: {0}")]
    Build(String),
    #[error(transparent)]
    Engine(#[from] SandboxError),
}

/// Why a prompt cannot be given to a CLI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    #[error(
        "this CLI takes its prompt as an argument, which cannot be longer than {most} bytes (it has {length}): say \
         max_prompt_bytes in its cli.toml, so that such a task is refused when it is submitted, or let a wrapper hand \
         the prompt in"
    )]
    PromptTooLong { length: usize, most: usize },
    #[error("the prompt has {length} bytes, and this CLI takes {most} (max_prompt_bytes in its cli.toml)")]
    PromptOverBound { length: usize, most: usize },
    #[error("this CLI takes its prompt as an argument, which cannot contain a NUL byte")]
    PromptWithNul,
    /// A manifest that was never checked.
    #[error("the manifest is broken: {0}")]
    Template(String),
}
