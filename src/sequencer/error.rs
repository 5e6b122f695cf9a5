//! Why the sequencer does not go on.

use crate::db::error::DbError;
use crate::trail::error::TrailError;

#[derive(Debug, thiserror::Error)]
pub enum SequencerError {
    #[error(transparent)]
    Database(#[from] DbError),
    /// Something is there that this log could not have come to by itself. Nothing is signed on top of it.
    #[error("the trail is not what it was: {0}")]
    Refused(String),
    #[error("KAGE_SEQUENCER_KEY: {0}")]
    Key(TrailError),
    #[error("KAGE_SEQUENCER_FORMER_KEYS: {0}")]
    FormerKey(TrailError),
    #[error("the {anchor} anchor: {problem}")]
    Anchor { anchor: &'static str, problem: String },
}

impl SequencerError {
    /// Whether the same step may do later.
    pub fn is_transient(&self) -> bool {
        match self {
            // A conflict: another sequencer was faster.
            Self::Database(error) => error.is_transient() || error.is_conflict(),
            _ => false,
        }
    }
}

impl From<sqlx::Error> for SequencerError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

/// What the tree itself says is wrong ends the role.
impl From<TrailError> for SequencerError {
    fn from(error: TrailError) -> Self {
        Self::Refused(error.to_string())
    }
}
