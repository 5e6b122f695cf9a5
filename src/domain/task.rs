//! A task: what a client asks for, and what its runs make of it.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::domain::run::RunState;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TaskStatus {
    Pending,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl TaskStatus {
    pub const ALL: [Self; 5] = [Self::Pending, Self::Running, Self::Completed, Self::Failed, Self::Cancelled];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// What a task comes to when its last run has ended: one success completes it; else a
    /// cancelled run makes it cancelled; else it failed.
    pub fn of_ended_runs(runs: &[RunState]) -> Self {
        if runs.contains(&RunState::Succeeded) {
            Self::Completed
        } else if runs.contains(&RunState::Cancelled) {
            Self::Cancelled
        } else {
            Self::Failed
        }
    }
}

impl std::fmt::Display for TaskStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TaskStatus {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("unknown task status {0:?}")]
pub struct UnknownStatus(pub String);

/// What to do with the branches of a finished task. Kept with the task; merging itself is asked for by the client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MergeStrategy {
    #[default]
    Theirs,
    Auto,
    Manual,
}

impl MergeStrategy {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Theirs => "theirs",
            Self::Auto => "auto",
            Self::Manual => "manual",
        }
    }
}
