//! A run: one CLI's work on one task, and the states that it moves through.

use serde::{Deserialize, Serialize};

/// Where a run stands. The order of the first four is the order of the road.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Waits for a runner, or for the back-off before another attempt.
    Queued,
    /// A runner holds its lease and makes worktree and sandbox.
    Preparing,
    /// The CLI's process exists.
    Running,
    /// The CLI has ended; the container is removed, the worktree becomes a commit.
    Harvesting,
    /// Ended well, with a commit (or without one, where the assignment allows that).
    Succeeded,
    /// The CLI ended with another status than 0, or could not be given its revision.
    Failed,
    /// The CLI ended with status 0 but changed nothing: a false success.
    NoChanges,
    /// Over its wall-clock limit.
    TimedOut,
    /// Wrote nothing for longer than its idle limit.
    IdleTimeout,
    /// The kernel ended it at its memory limit.
    OutOfMemory,
    /// Wrote more output than its limit.
    OutputLimit,
    /// Filled one of its writable places: its worktree, `/tmp`, HOME.
    DiskLimit,
    /// Made more processes and threads than its limit.
    ProcessLimit,
    /// Wrote a file larger than its limit.
    FileLimit,
    /// Its model budget was spent; what it had done by then is kept.
    BudgetExhausted,
    /// A client asked to end it.
    Cancelled,
    /// The sandbox was not what it was asked to be: no CLI was started in it.
    ContainmentRefused,
    /// The sandbox could not be made, or broke.
    SandboxError,
    /// Its runner disappeared and nobody could take it up again.
    Lost,
}

impl RunState {
    pub const ENDED: [Self; 15] = [
        Self::Succeeded,
        Self::Failed,
        Self::NoChanges,
        Self::TimedOut,
        Self::IdleTimeout,
        Self::OutOfMemory,
        Self::OutputLimit,
        Self::DiskLimit,
        Self::ProcessLimit,
        Self::FileLimit,
        Self::BudgetExhausted,
        Self::Cancelled,
        Self::ContainmentRefused,
        Self::SandboxError,
        Self::Lost,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::Harvesting => "harvesting",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::NoChanges => "no_changes",
            Self::TimedOut => "timed_out",
            Self::IdleTimeout => "idle_timeout",
            Self::OutOfMemory => "out_of_memory",
            Self::OutputLimit => "output_limit",
            Self::DiskLimit => "disk_limit",
            Self::ProcessLimit => "process_limit",
            Self::FileLimit => "file_limit",
            Self::BudgetExhausted => "budget_exhausted",
            Self::Cancelled => "cancelled",
            Self::ContainmentRefused => "containment_refused",
            Self::SandboxError => "sandbox_error",
            Self::Lost => "lost",
        }
    }

    pub const fn has_ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Preparing | Self::Running | Self::Harvesting)
    }

    /// A limit of what it may use has ended it.
    const fn is_limit(self) -> bool {
        matches!(
            self,
            Self::OutOfMemory
                | Self::OutputLimit
                | Self::DiskLimit
                | Self::ProcessLimit
                | Self::FileLimit
                | Self::BudgetExhausted
        )
    }

    /// The predecessor's word for a result (`cli_results[].status`).
    pub const fn result_status(self) -> Option<ResultStatus> {
        Some(match self {
            Self::Queued | Self::Preparing | Self::Running | Self::Harvesting => return None,
            Self::Succeeded => ResultStatus::Success,
            Self::TimedOut | Self::IdleTimeout => ResultStatus::Timeout,
            Self::Cancelled => ResultStatus::Cancelled,
            limit if limit.is_limit() => ResultStatus::Blocked,
            _ => ResultStatus::Failure,
        })
    }

    /// The predecessor's word in a `progress` event.
    pub const fn progress_status(self) -> ProgressStatus {
        match self {
            Self::Queued => ProgressStatus::Waiting,
            Self::Preparing | Self::Running | Self::Harvesting => ProgressStatus::Working,
            Self::Succeeded => ProgressStatus::Done,
            limit if limit.is_limit() => ProgressStatus::Blocked,
            _ => ProgressStatus::Failed,
        }
    }
}

impl std::fmt::Display for RunState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for RunState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        [Self::Queued, Self::Preparing, Self::Running, Self::Harvesting]
            .into_iter()
            .chain(Self::ENDED)
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("unknown run state {0:?}")]
pub struct UnknownState(pub String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ResultStatus {
    Success,
    Failure,
    Timeout,
    Cancelled,
    Blocked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProgressStatus {
    Working,
    Blocked,
    Done,
    Failed,
    Waiting,
}
