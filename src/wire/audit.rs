//! Audit entries as clients see them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::wire::moment;

/// An entry in its place in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    pub index: u64,
    /// Hash of the leaf, in hexadecimal.
    pub hash: String,
    /// False: the entry that the server has now is not the one that this hash was taken of.
    pub as_recorded: bool,
    /// The canonical entry: every column that is not null.
    #[schema(value_type = Object)]
    pub entry: serde_json::Value,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// In the order of the log.
    pub entries: Vec<AuditEntry>,
    /// For the next page; absent: these were the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// That an entry is in the log: RFC 6962, section 2.1.1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditProof {
    #[serde(flatten)]
    pub entry: AuditEntry,
    /// Hashes in hexadecimal, the deepest first.
    pub proof: Vec<String>,
    /// The signed note whose root the proof leads to.
    pub checkpoint: String,
}

/// Which entries.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditFilter {
    /// Such as `task.submit`.
    #[param(pattern = r"^[^\x00]*$")]
    pub action: Option<String>,
    /// Such as `task:ID`.
    #[param(pattern = r"^[^\x00]*$")]
    pub object: Option<String>,
    /// An id, or a kind such as `runner`.
    #[param(pattern = r"^[^\x00]*$")]
    pub actor: Option<String>,
    /// `done`, `refused` or `failed`.
    #[param(pattern = r"^[^\x00]*$")]
    pub outcome: Option<String>,
    /// From this time on.
    #[serde(default, deserialize_with = "moment::read")]
    pub since: Option<DateTime<Utc>>,
    /// Before this time.
    #[serde(default, deserialize_with = "moment::read")]
    pub until: Option<DateTime<Utc>>,
    /// This task and its runs.
    pub task: Option<Uuid>,
    /// Those of one request, by its `X-Request-Id`.
    #[param(pattern = r"^[^\x00]*$")]
    pub request_id: Option<String>,
    /// From an address, or a network such as `192.0.2.0/24`.
    #[param(pattern = r"^[^\x00]*$")]
    pub address: Option<String>,
    /// Method and path of a route, such as `POST /api/v1/tasks`.
    #[param(pattern = r"^[^\x00]*$")]
    pub route: Option<String>,
    /// `next` of the page before.
    #[param(maximum = 9_223_372_036_854_775_807_u64)]
    pub cursor: Option<u64>,
    /// 1 to 500; 100 if it is not given.
    #[param(minimum = 1, maximum = 500)]
    pub limit: Option<u32>,
}

/// Which entries, and how.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditExport {
    /// `jsonl` (can be verified offline) or `ocsf`.
    #[param(pattern = "^(jsonl|ocsf)$")]
    pub format: Option<String>,
    /// This task and its runs.
    pub task: Option<Uuid>,
    /// From this time on.
    #[serde(default, deserialize_with = "moment::read")]
    pub since: Option<DateTime<Utc>>,
    /// Before this time.
    #[serde(default, deserialize_with = "moment::read")]
    pub until: Option<DateTime<Utc>>,
}
