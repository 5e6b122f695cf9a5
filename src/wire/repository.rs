//! Repositories as clients see them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::repository::RepositoryState;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRepository {
    /// `[a-z0-9][a-z0-9._-]*`, at most 64 bytes.
    #[schema(min_length = 1, max_length = 64, pattern = "^[a-z0-9][a-z0-9._-]*$")]
    pub name: String,
    /// Absolute path on the runner's host, or an `https://` or `ssh://` URL, that the operator allowed.
    #[schema(min_length = 1)]
    pub source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Repository {
    pub name: String,
    pub source: String,
    pub state: RepositoryState,
    pub error: Option<String>,
    pub default_branch: Option<String>,
    /// Branches and tags, each with its commit.
    pub refs: BTreeMap<String, String>,
    pub created_at: DateTime<Utc>,
    pub fetched_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Repositories {
    pub repositories: Vec<Repository>,
}
