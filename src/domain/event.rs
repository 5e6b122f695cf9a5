//! What a client can watch. An event's payload is stored as JSON and sent as it was stored.

use serde::{Deserialize, Serialize};

/// The kinds of events on a task's stream; the string is the SSE event name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A block of a run's output.
    Log,
    /// A run moved to another state.
    State,
    /// The predecessor's event: a run's progress in words.
    Progress,
    /// A run has ended; its result.
    Result,
    /// The task has ended. The stream ends after it.
    TaskComplete,
    /// Something went wrong that the client should see.
    Error,
    /// Something that is not a failure but should be seen.
    Warning,
    /// The sandbox refused something that ordinary programs do not try.
    Security,
}

impl EventKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::State => "state",
            Self::Progress => "progress",
            Self::Result => "result",
            Self::TaskComplete => "task_complete",
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Security => "security",
        }
    }
}
