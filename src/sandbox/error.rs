//! What can go wrong with an engine or a container: each a thing that an operator must tell apart.

use std::time::Duration;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    #[error(
        "no Docker Engine answers at {uri}: is it running? `./quickstart` installs and starts one ({reason})"
    )]
    EngineUnavailable { uri: String, reason: String },
    #[error("{uri:?} is not an engine's address: write unix:///path/to/docker.sock")]
    EngineAddress { uri: String },
    #[error("the engine has not answered `{call}` within {after:?}")]
    Deadline { call: &'static str, after: Duration },
    #[error("the engine has no image {image}: build or load it, then register it again")]
    ImageMissing { image: String },
    #[error("image {image} is refused: {reason}")]
    ImageRefused { image: String, reason: String },
    #[error("the sandbox's specification is refused: {0}")]
    Spec(#[from] crate::sandbox::spec::InvalidSpec),
    #[error("a container named {name} exists already")]
    NameTaken { name: String },
    #[error("the engine refuses to create the container: {0}")]
    CreateRefused(String),
    #[error("the engine would not enforce everything that a sandbox needs: {0}")]
    Unenforced(String),
    #[error("the engine refuses to start the container: {0}")]
    StartRefused(String),
    /// Its keeper ended, or has not begun yet.
    #[error("nobody takes the listener for refused system calls, so the container was not started: {0}")]
    NoListener(String),
    /// Somebody else removed it.
    #[error("container {id} is gone: it was removed from outside")]
    Gone { id: String },
    #[error("container {id} could not be removed: {reason}")]
    StillThere { id: String, reason: String },
    #[error("the engine refuses `{call}`: {message} (status {status})")]
    Refused { call: &'static str, status: u16, message: String },
    #[error("the engine's answer to `{call}` makes no sense: {reason}")]
    Answer { call: &'static str, reason: String },
}

impl SandboxError {
    /// Whether the same call may well succeed later: the engine or the keeper is away or slow, not against it.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::EngineUnavailable { .. } | Self::Deadline { .. } | Self::NoListener(_))
    }
}
