//! What a sandbox was found to be, seen from inside before its CLI began.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The proof of one attempt's sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Containment {
    pub attempt: u32,
    pub state: ContainmentState,
    pub checks: Vec<ContainmentCheck>,
    /// What it was and nobody asked for, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub surprises: Vec<String>,
    /// What could not be seen from inside, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_seen: Vec<String>,
    /// Milliseconds that the look took.
    pub took_ms: f64,
    pub at: DateTime<Utc>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContainmentState {
    /// All of it is what was asked for.
    Proved,
    /// What could be seen is what was asked for; `not_seen` names the rest.
    ProvedInPart,
    /// It was not what was asked for; no CLI was started in it.
    Refused,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ContainmentCheck {
    /// `rights`, `namespaces`, `network`, `mounts`, `devices`, `sockets`, `limits` or `calls`.
    pub name: String,
    pub result: CheckResult,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckResult {
    Ok,
    /// What could be seen of it is as it must be.
    OkInPart,
    NotSeen,
    Surprise,
}
