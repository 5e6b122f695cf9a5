//! Payloads of the events on `/tasks/{id}/progress`. The SSE event name says which one it is.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::domain::run::{ProgressStatus, RunState};
use crate::domain::task::TaskStatus;
use crate::wire::run::Run;

/// One event of a stream as a client of Server-Sent Events reads it. Lines that begin with a colon are none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamEvent {
    /// Which of the payloads `data` is.
    pub event: String,
    /// To resume from; `connected`, `heartbeat` and `let_go` have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// JSON.
    pub data: String,
}

/// `connected`: first on every stream, without an id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Connected {
    pub task_id: Uuid,
    pub status: TaskStatus,
    pub timestamp: DateTime<Utc>,
}

/// `progress`: the predecessor's event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    pub task_id: Uuid,
    /// The run's name.
    pub cli_name: String,
    /// The run's id.
    pub session_id: Uuid,
    pub status: ProgressStatus,
    pub message: String,
    pub timestamp: DateTime<Utc>,
    /// What the CLI was at, where it says so; `message` says it in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files_modified: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<f64>,
}

/// What a CLI was at, as its manifest reads its output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Activity {
    /// The model said something: `message`, word for word.
    Assistant,
    ToolCall {
        tool: String,
        /// Its most telling argument.
        argument: String,
    },
    ToolResult {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tool: Option<String>,
        /// The beginning of it.
        text: String,
        /// Absent where the CLI does not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ok: Option<bool>,
    },
    /// The CLI says that it is done.
    Final { ok: bool },
}

/// `state`: a run moved to another state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct State {
    pub task_id: Uuid,
    pub run: String,
    pub run_id: Uuid,
    pub state: RunState,
    pub attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub timestamp: DateTime<Utc>,
}

/// `log`: a block of output, at most 64 KiB.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Log {
    pub run: String,
    pub attempt: u32,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Offset of the block's first byte within the attempt's stream.
    pub offset: u64,
    /// The block, with bytes that are not UTF-8 replaced.
    pub text: String,
    /// The block's bytes, where they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
}

/// `result`: a run has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunResult {
    pub task_id: Uuid,
    pub run: Run,
    /// At most 1000; `GET …/files` has all.
    pub files_modified: Vec<String>,
    pub warnings: Vec<String>,
}

/// `task_complete`: the last event of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskComplete {
    pub task_id: Uuid,
    pub status: TaskStatus,
    pub success_count: u32,
    pub failure_count: u32,
    pub best_cli: Option<String>,
    pub timestamp: DateTime<Utc>,
}

/// `security`: the sandbox refused a kind of system call for the first time in this attempt. How often it did is in the
/// run's `refused_calls`. Or, with `run.redact` for a call: something that looks like a secret was kept out of the stored output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Security {
    pub task_id: Uuid,
    pub run: String,
    pub run_id: Uuid,
    pub attempt: u32,
    pub call: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub form: String,
    /// Of the first such call, in hexadecimal. A pointer means nothing outside.
    pub arguments: Vec<String>,
    /// So far.
    pub count: u64,
    /// The same in words.
    pub message: String,
    /// Of the first such call.
    pub timestamp: DateTime<Utc>,
}

/// `error` and `warning`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Notice {
    pub task_id: Uuid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    pub message: String,
    pub timestamp: DateTime<Utc>,
}
