//! What can be wrong with a log, a proof or a note.

/// No variant carries a private key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrailError {
    #[error("not a {what}: {problem}")]
    Malformed { what: &'static str, problem: String },
    /// A stored hash that a proof needs is not there.
    #[error("the tree has no hash for level {level}, index {index}")]
    HashMissing { level: u8, index: u64 },
    #[error("the {what} does not hold")]
    Proof { what: &'static str },
    #[error("the signature of {0} does not hold")]
    Signature(String),
    #[error("no signature by {0}")]
    Unsigned(String),
    #[error("the checkpoint is of log {found:?}, not of {expected:?}")]
    Origin { expected: String, found: String },
    /// Something that was recorded is not as it was.
    #[error("{place}: {problem}")]
    Tampered { place: String, problem: String },
}

impl TrailError {
    pub(crate) fn malformed(what: &'static str, problem: impl ToString) -> Self {
        Self::Malformed { what, problem: problem.to_string() }
    }

    pub(crate) fn tampered(place: impl ToString, problem: impl ToString) -> Self {
        Self::Tampered { place: place.to_string(), problem: problem.to_string() }
    }
}
