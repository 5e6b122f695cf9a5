//! Why there is no secret. Says where it was looked for, never what was there.

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("{0} is not set")]
    NotSet(String),
    #[error("{place}: {error}")]
    Unreadable { place: String, error: std::io::Error },
    #[error("{0} is empty, longer than 64 KiB, or holds what cannot be in it")]
    Unusable(String),
    #[error("{place} holds no {form}")]
    Unfit { place: String, form: &'static str },
    /// Asked before, for nothing.
    #[error("{0}")]
    Unread(String),
    #[error("{place}: {problem}")]
    Command { place: String, problem: String },
    #[error("{place}: {problem}")]
    Vault { place: String, problem: String },
}
