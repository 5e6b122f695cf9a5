//! Runs as rows: where each stands. What changes them is in `queue`, `attempts` and `tasks`.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::db::error::DbError;
use crate::db::visible::Visible;
use crate::domain::run::RunState;
use crate::wire;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct RunRow {
    pub id: Uuid,
    pub task_id: Uuid,
    pub name: String,
    pub position: i32,
    pub cli_name: String,
    pub image_digest: String,
    pub manifest: Value,
    pub context: Value,
    pub timeout_secs: i32,
    pub idle_secs: Option<i32>,
    pub allow_no_changes: bool,
    #[sqlx(try_from = "String")]
    pub state: StateColumn,
    pub error: Option<String>,
    pub exit_code: Option<i32>,
    pub attempt: i32,
    pub lease_id: Option<Uuid>,
    pub runner_id: Option<Uuid>,
    pub container_id: Option<String>,
    pub base_commit: Option<String>,
    pub verdict: Option<Value>,
    pub model: Option<String>,
    pub runtime: Option<String>,
    pub told: Option<Value>,
    pub decided_by: Option<String>,
    pub contained: Option<bool>,
    pub quarantined: sqlx::types::Json<Vec<wire::quarantine::Quarantined>>,
    pub stdout_offset: i64,
    pub stderr_offset: i64,
    pub output_bytes: i64,
    pub cost_usd: f64,
    pub branch: Option<String>,
    pub commit_hash: Option<String>,
    pub files_changed: i32,
    pub insertions: i64,
    pub deletions: i64,
    pub started_at: Option<DateTime<Utc>>,
    pub cli_started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    /// Not claimed before.
    pub not_before: DateTime<Utc>,
}

/// What clients see of a run and other tables have.
#[derive(Debug, Clone, Default)]
pub struct RunParts {
    pub usage: Option<wire::run::ModelUse>,
    pub containment: Option<wire::containment::Containment>,
    pub refused_calls: Option<Vec<wire::run::RefusedCall>>,
    pub refused_calls_recorded: Option<String>,
    pub sandbox: Option<wire::run::SandboxRecord>,
}

/// A state as the column spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateColumn(pub RunState);

impl TryFrom<String> for StateColumn {
    type Error = crate::domain::run::UnknownState;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl RunRow {
    pub fn state(&self) -> RunState {
        self.state.0
    }

    /// Seconds from the first attempt's start to the end, or until now.
    pub fn duration(&self) -> f64 {
        let Some(start) = self.started_at else { return 0.0 };
        let end = self.finished_at.unwrap_or_else(Utc::now);
        (end - start).as_seconds_f64().max(0.0)
    }

    /// `parts`: of [`crate::db::run_parts`].
    pub fn to_wire(&self, parts: RunParts) -> wire::run::Run {
        wire::run::Run {
            id: self.id,
            name: self.name.clone(),
            cli_name: self.cli_name.clone(),
            state: self.state(),
            error: self.error.clone(),
            exit_code: self.exit_code,
            attempt: self.attempt.unsigned_abs(),
            started_at: self.started_at,
            finished_at: self.finished_at,
            image: self.image_digest.clone(),
            base_commit: self.base_commit.clone(),
            branch: self.branch.clone(),
            commit_hash: self.commit_hash.clone(),
            files_changed: self.files_changed.unsigned_abs(),
            insertions: self.insertions.unsigned_abs(),
            deletions: self.deletions.unsigned_abs(),
            output_bytes: self.output_bytes.unsigned_abs(),
            cost: self.cost_usd,
            usage: parts.usage,
            decided_by: self.decided_by.clone(),
            contained: self.contained,
            containment: parts.containment,
            refused_calls: parts.refused_calls,
            refused_calls_recorded: parts.refused_calls_recorded,
            sandbox: parts.sandbox,
            quarantined: self.quarantined.0.clone(),
            events: self.manifest.get("events").is_some_and(Value::is_string),
        }
    }
}

/// What is shown of a run reads this much of its row. Context, manifest and what was told can be long, and a page has hundreds of
/// runs; [`RunRow::to_wire`] asks of the manifest alone whether its image reads events.
macro_rules! shown {
    ($rest:literal) => {
        concat!(
            "SELECT r.id, r.task_id, r.name, r.position, r.cli_name, r.image_digest,
                    CASE jsonb_typeof(r.manifest -> 'events') WHEN 'string' THEN '{\"events\": \"\"}'::jsonb ELSE '{}'::jsonb END
                        AS manifest,
                    '{}'::jsonb AS context, NULL::jsonb AS verdict, NULL::jsonb AS told,
                    r.timeout_secs, r.idle_secs, r.allow_no_changes, r.state, r.error, r.exit_code, r.attempt, r.lease_id,
                    r.runner_id, r.container_id, r.base_commit, r.model, r.runtime, r.decided_by, r.contained, r.quarantined,
                    r.stdout_offset, r.stderr_offset, r.output_bytes, r.cost_usd, r.branch, r.commit_hash, r.files_changed,
                    r.insertions, r.deletions, r.started_at, r.cli_started_at, r.finished_at, r.not_before
             ",
            $rest
        )
    };
}

/// # Errors
/// [`DbError`].
pub async fn of_tasks(pool: &PgPool, tasks: &[Uuid]) -> Result<Vec<RunRow>, DbError> {
    Ok(sqlx::query_as(shown!("FROM runs r WHERE r.task_id = ANY($1) ORDER BY r.task_id, r.position"))
        .bind(tasks)
        .fetch_all(pool)
        .await?)
}

/// # Errors
/// [`DbError`].
pub async fn find(connection: &mut PgConnection, run: Uuid) -> Result<Option<RunRow>, DbError> {
    Ok(sqlx::query_as("SELECT * FROM runs WHERE id = $1").bind(run).fetch_optional(connection).await?)
}

/// # Errors
/// [`DbError`].
pub async fn find_by_name(
    pool: &PgPool,
    visible: &Visible,
    task: Uuid,
    name: &str,
) -> Result<Option<RunRow>, DbError> {
    Ok(sqlx::query_as(shown!(
        "FROM runs r JOIN tasks t ON t.id = r.task_id
         WHERE r.task_id = $3 AND r.name = $4 AND sees_task(t.repository, t.clis, $1, $2)"
    ))
    .bind(visible.repositories())
    .bind(visible.clis())
    .bind(task)
    .bind(name)
    .fetch_optional(pool)
    .await?)
}

/// Whether the given runs have ended. One that this database does not know is missing, and may be another installation's: it is
/// not proved to be dead.
///
/// # Errors
/// [`DbError`].
pub async fn ends_of(pool: &PgPool, candidates: &[Uuid]) -> Result<BTreeMap<Uuid, bool>, DbError> {
    let rows: Vec<(Uuid, bool)> =
        sqlx::query_as("SELECT id, finished_at IS NOT NULL FROM runs WHERE id = ANY($1)")
            .bind(candidates)
            .fetch_all(pool)
            .await?;
    Ok(rows.into_iter().collect())
}

/// The predecessor's rule: among the successful, the cheapest; then the quickest.
pub(super) fn best(runs: &[RunRow]) -> Option<&RunRow> {
    runs.iter()
        .filter(|run| run.state() == RunState::Succeeded)
        .min_by(|a, b| a.cost_usd.total_cmp(&b.cost_usd).then(a.duration().total_cmp(&b.duration())))
}
