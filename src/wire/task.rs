//! Tasks as clients send and see them. Field names are the predecessor's; what it did not have is added.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::domain::name::Name;
use crate::domain::run::ResultStatus;
use crate::domain::task::{MergeStrategy, TaskStatus};
use crate::wire::let_go::LetGo;
use crate::wire::object;
use crate::wire::run::Run;

/// Seconds.
pub const DEFAULT_TIMEOUT: u32 = 600;
pub const DEFAULT_MAX_RETRIES: u32 = 3;
/// Seconds.
pub const DEFAULT_RETRY_DELAY: u32 = 5;

const fn default_timeout() -> u32 {
    DEFAULT_TIMEOUT
}

const fn default_max_retries() -> u32 {
    DEFAULT_MAX_RETRIES
}

const fn default_retry_delay() -> u32 {
    DEFAULT_RETRY_DELAY
}

/// What to do, where, and by which CLIs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTask {
    /// The prompt: at least 10 characters, at most 1 MiB.
    #[schema(min_length = 10, max_length = 1_048_576)]
    pub description: String,
    /// Name of a registered repository. May be left out when exactly one is registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Branch, tag or commit id to start from; default: the repository's default branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_revision: Option<String>,
    /// One to four.
    #[serde(deserialize_with = "object::list")]
    #[schema(min_items = 1, max_items = 4)]
    pub cli_assignments: Vec<Assignment>,
    /// Further attempts after a transient failure, 0 to 5.
    #[serde(default = "default_max_retries")]
    #[schema(minimum = 0, maximum = 5, default = 3)]
    pub max_retries: u32,
    /// Seconds before the first retry, 1 to 60; doubles each time.
    #[serde(default = "default_retry_delay")]
    #[schema(minimum = 1, maximum = 60, default = 5)]
    pub retry_delay: u32,
    #[serde(default)]
    pub merge_strategy: MergeStrategy,
    /// What all runs of the task may use of models together.
    #[serde(default, deserialize_with = "object::optional", skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Free text of the client's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
}

/// What may be used of models; a run that reaches a limit ends as `budget_exhausted`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// USD, to the millionth; more than 0, at most 1000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(exclusive_minimum = 0, maximum = 1_000_000)]
    pub usd: Option<f64>,
    /// Input and output tokens together; at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000_000_000_u64)]
    pub tokens: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// Name of a registered CLI image.
    pub cli_name: String,
    /// Handed to the CLI as JSON in `KAGE_CONTEXT`. A CLI that asks a model also has it at the end of its prompt.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub context: serde_json::Map<String, serde_json::Value>,
    /// Wall-clock seconds for one attempt, 60 to 3600.
    #[serde(default = "default_timeout")]
    #[schema(minimum = 60, maximum = 3600, default = 600)]
    pub timeout: u32,
    /// Seconds without output before the run is ended, 1 to 3600; default: the runner's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3600)]
    pub idle_timeout: Option<u32>,
    /// Count a clean exit that changed nothing as a success.
    #[serde(default)]
    pub allow_no_changes: bool,
    /// The model to ask for; default: the operator's, or the CLI image's. Only for a CLI that asks a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The OCI runtime to run in (`runsc`: gVisor), among those that the operator allows; default: the operator's, or a
    /// stronger one that the CLI's image demands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub runtime: Option<Name>,
    /// What this run may use of its model, within the task's budget and the operator's.
    #[serde(default, deserialize_with = "object::optional", skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    pub id: Uuid,
    pub description: String,
    pub status: TaskStatus,
    pub repository: String,
    pub base_revision: Option<String>,
    pub cli_assignments: Vec<Assignment>,
    /// In a list: an assignment has a `context` that is empty there; the task alone has it. Absent where none is left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub contexts_left_out: bool,
    pub max_retries: u32,
    pub retry_delay: u32,
    pub merge_strategy: MergeStrategy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    pub created_by: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
    pub error: Option<String>,
    /// Where each run stands.
    pub runs: Vec<Run>,
    /// When the task has ended: what came of each run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cli_results: Option<Vec<CliResult>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_count: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_count: Option<u32>,
    /// USD, of all runs so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_cost: Option<f64>,
    /// Seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_duration: Option<f64>,
    /// Name of the best run: among the successful, the cheapest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_cli: Option<String>,
    /// What of it is no longer kept; absent where all of it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub let_go: Vec<LetGo>,
}

/// The predecessor's record of an ended run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CliResult {
    /// The run's name: the CLI's, with `-2`, `-3` … when a task assigns it more than once.
    pub cli_name: String,
    pub status: ResultStatus,
    /// The first of the changed paths; all are at `GET …/files`.
    pub files_modified: Vec<String>,
    /// The list is cut; absent where it is whole.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub files_modified_truncated: bool,
    /// How many there are, where the list is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files_modified_total: Option<u32>,
    /// USD.
    pub cost: f64,
    /// Seconds.
    pub duration: f64,
    pub retries: u32,
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskPage {
    pub tasks: Vec<Task>,
    pub total: u64,
    pub page: u32,
    pub page_size: u32,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TaskFilter {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<TaskStatus>,
    /// From 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 4_294_967_295_u64, format = Int64)]
    pub page: Option<u32>,
    /// 1 to 100, default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 100)]
    pub page_size: Option<u32>,
}

/// The answer to `DELETE /tasks/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Cancelled {
    pub message: String,
    pub task_id: Uuid,
    pub status: TaskStatus,
}

/// Totals for each CLI over all tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    pub total_tasks: u64,
    pub tasks_by_status: std::collections::BTreeMap<String, u64>,
    pub clis: Vec<CliStats>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CliStats {
    pub cli_name: String,
    pub total_runs: u64,
    pub success_count: u64,
    pub failure_count: u64,
    pub active_count: u64,
    /// USD.
    pub total_cost: f64,
    /// Seconds, over ended runs.
    pub average_duration: Option<f64>,
}
