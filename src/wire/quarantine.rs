//! Configuration of CLIs in a repository, and what of it is approved, as clients see it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// A path that a CLI would obey before its first prompt, with one content of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Configuration {
    pub path: String,
    /// `sha256:…` over modes, names and contents of all that is there.
    pub digest: String,
    /// `file`, `folder`, `link` or `submodule`.
    pub kind: String,
    pub files: u64,
    /// Of all its files together.
    pub bytes: u64,
    /// Why it cannot be approved; absent if it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
    /// A commit that has it.
    pub commit_hash: String,
    /// When a fetch or a run met it last.
    pub seen_at: DateTime<Utc>,
    /// The approval's id; absent: runs do not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Uuid>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Configurations {
    /// The latest first.
    pub configuration: Vec<Configuration>,
}

/// Exactly one content at exactly one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewApproval {
    #[schema(min_length = 1)]
    pub path: String,
    #[schema(pattern = "^sha256:[0-9a-f]{64}$")]
    pub digest: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Approval {
    pub id: Uuid,
    pub path: String,
    pub digest: String,
    /// Id of the API key.
    pub approved_by: String,
    pub approved_at: DateTime<Utc>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Approvals {
    pub approvals: Vec<Approval>,
}

/// A path that a run did not see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Quarantined {
    pub path: String,
    pub digest: String,
    /// Why no operator can approve it; absent if one can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
}
