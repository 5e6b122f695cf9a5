//! Runs and their results.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::domain::limits::Enforcement;
use crate::domain::run::RunState;
use crate::wire::containment::Containment;
use crate::wire::quarantine::Quarantined;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Run {
    pub id: Uuid,
    /// Name within the task: the CLI's, with `-2`, `-3` … when a task assigns it more than once.
    pub name: String,
    pub cli_name: String,
    pub state: RunState,
    /// Why it ended so, for a person.
    pub error: Option<String>,
    /// The CLI's exit status, if it ended by itself.
    pub exit_code: Option<i32>,
    /// From 1; 0 before the first.
    pub attempt: u32,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    /// Digest of the CLI image (`sha256:…`).
    pub image: String,
    /// The commit that it started from.
    pub base_commit: Option<String>,
    pub branch: Option<String>,
    pub commit_hash: Option<String>,
    pub files_changed: u32,
    pub insertions: u64,
    pub deletions: u64,
    /// Bytes of output so far.
    pub output_bytes: u64,
    /// USD. Counted by the gateway where the CLI asks a model; else what the CLI says.
    pub cost: f64,
    /// What it used of a model; absent for a CLI that asks none, and before its first attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<ModelUse>,
    /// When it has ended: what its state rests on, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// Whether its sandbox, looked at from inside before the CLI began, was what it was asked to be; absent before that,
    /// and where not all of it could be seen: `containment` has the whole of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contained: Option<bool>,
    /// What was found in its last sandbox before the CLI began; absent before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub containment: Option<Containment>,
    /// System calls that its sandbox refused, over all its attempts: empty if none were, absent if none are recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_calls: Option<Vec<RefusedCall>>,
    /// `recorded`, `not recorded: …` or `interrupted: …`, with the reason; absent before the first sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_calls_recorded: Option<String>,
    /// What holds its last attempt; absent before the first sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxRecord>,
    /// Configuration of the repository that it did not see, because no operator has approved it; absent if none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<Quarantined>,
    /// Its image reads its output: what it says and does is told by `progress` events with an `activity`.
    #[serde(default)]
    pub events: bool,
}

/// What holds an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxRecord {
    pub attempt: u32,
    /// The OCI runtime; absent: the engine's own choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// `overlay` or `copy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worktree: Option<String>,
    /// Each limit by its name, with how it is held.
    pub limits: BTreeMap<String, HeldLimit>,
    /// What is different with this runtime, for a person.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeldLimit {
    /// Bytes, seconds, or a number, as the name says.
    pub value: u64,
    /// `hard`: nothing goes beyond it. `soft`: it is looked at every few seconds.
    pub held: Enforcement,
}

/// A kind of system call that a sandbox refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusedCall {
    pub attempt: u32,
    /// The kernel's name for it; `(others)` counts what is beyond the number of kinds that are told apart.
    pub call: String,
    /// Which form of it, such as a socket's family; empty where the name says it all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub form: String,
    pub count: u64,
    /// Ordinary programs try it and do without: no alarm.
    #[serde(default)]
    pub expected: bool,
    pub first_at: DateTime<Utc>,
    pub last_at: DateTime<Utc>,
}

/// What a run has used of a model, over all its attempts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelUse {
    /// Who serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The model that the CLI is told to ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Calls that were sent on.
    pub calls: u64,
    /// All input, cached too.
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Of the input: read from the provider's cache.
    pub cached_input_tokens: u64,
    /// Of the input: written to the provider's cache.
    pub cache_write_tokens: u64,
}

/// One changed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileChange {
    /// The path, with bytes that are not UTF-8 replaced.
    pub path: String,
    /// The path's bytes in base64, where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_base64: Option<String>,
    /// Where a renamed file came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_path: Option<String>,
    /// `added`, `modified`, `deleted`, `renamed` or `typechange`.
    pub status: String,
    /// Git's file mode in octal, such as `100644`; absent where the file is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_mode: Option<String>,
    pub insertions: u64,
    pub deletions: u64,
    pub binary: bool,
    /// The file was too large, or came too late, to be compared: no lines are counted. Absent where it was.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_compared: bool,
    /// Bytes, of the new file.
    pub size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Files {
    pub run: String,
    pub branch: Option<String>,
    pub commit_hash: Option<String>,
    /// A page of them.
    pub files: Vec<FileChange>,
    /// All changed files.
    #[serde(default)]
    pub total: u64,
    /// There are more: ask again with `?after=` this. Absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// What the harvest did not take, and why; at most 1000, the rest is counted in `warnings`.
    #[serde(default)]
    pub rejected: Vec<Rejected>,
    /// Of `files`, what a person should read before anything else; at most 100.
    #[serde(default)]
    pub flagged: Vec<Flagged>,
    /// Both in words.
    pub warnings: Vec<String>,
}

/// A path of the worktree that is not in the result as the run left it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rejected {
    /// Escaped and in quotes where it is not plain text.
    pub path: String,
    /// `held` (hidden from the run: the base's content stays), `special_file`, `nested_git`, `forbidden_name`,
    /// `submodule_content`, `ignore_rules`, `ignored` (one entry for all, at the first of them), …
    pub kind: String,
    pub reason: String,
}

/// A change that some program obeys without being asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Flagged {
    /// Escaped and in quotes where it is not plain text.
    pub path: String,
    pub kind: FlaggedKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlaggedKind {
    /// Of a CLI, which obeys it before its first prompt.
    Configuration,
    /// Of an editor, a build or a forge.
    Review,
}

/// What a harvest has to say beside its files, as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HarvestFindings {
    pub warnings: Vec<String>,
    pub rejected: Vec<Rejected>,
    pub flagged: Vec<Flagged>,
}

/// Which of the changed files are wanted.
#[derive(Debug, Clone, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FilesPart {
    /// Skip so many; default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(maximum = 9_223_372_036_854_775_807_u64)]
    pub after: Option<u64>,
    /// At most so many, 1 to 10000; default 10000. An answer is about 8 MiB at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 10_000)]
    pub limit: Option<u32>,
}

/// The answer to `GET …/diff` with `Accept: application/json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diff {
    pub run: String,
    pub branch: Option<String>,
    pub base_commit: Option<String>,
    pub commit_hash: Option<String>,
    /// The first of them, as in the first answer of `GET …/files`.
    pub files: Vec<FileChange>,
    /// There are more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub files_truncated: bool,
    /// The patch, with bytes that are not UTF-8 replaced: for `git apply` take the text form. At most 4 MiB, in whole files.
    pub patch: String,
    /// The patch was over a limit and is cut. The text form has up to 16 MiB, the branch everything.
    pub truncated: bool,
}
