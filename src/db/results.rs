//! What a run brought back: patch, files, warnings. The commit itself is in the runner's repository.

use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::db::error::DbError;
use crate::db::visible::Visible;
use crate::wire::run::HarvestFindings;

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ResultRow {
    pub patch: Vec<u8>,
    pub patch_truncated: bool,
    pub files: Value,
    /// [`HarvestFindings`].
    pub warnings: Value,
}

impl ResultRow {
    /// Of a run that changed nothing: what was left out is told all the same.
    pub fn unchanged(findings: &HarvestFindings) -> Self {
        Self { patch: Vec::new(), patch_truncated: false, files: json!([]), warnings: json!(findings) }
    }
}

/// # Errors
/// [`DbError`].
pub async fn store(connection: &mut PgConnection, run: Uuid, result: &ResultRow) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO run_results (run_id, patch, patch_truncated, files, warnings) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (run_id) DO UPDATE SET patch = $2, patch_truncated = $3, files = $4, warnings = $5",
    )
    .bind(run)
    .bind(&result.patch)
    .bind(result.patch_truncated)
    .bind(&result.files)
    .bind(&result.warnings)
    .execute(connection)
    .await?;
    Ok(())
}

/// # Errors
/// [`DbError`].
pub async fn find(pool: &PgPool, visible: &Visible, run: Uuid) -> Result<Option<ResultRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT x.patch, x.patch_truncated, x.files, x.warnings
         FROM run_results x JOIN runs r ON r.id = x.run_id JOIN tasks t ON t.id = r.task_id
         WHERE x.run_id = $3 AND sees_task(t.repository, t.clis, $1, $2)",
    )
    .bind(visible.repositories())
    .bind(visible.clis())
    .bind(run)
    .fetch_optional(pool)
    .await?)
}

/// Files without the patch, and what the harvest said.
///
/// # Errors
/// [`DbError`].
pub async fn files(
    pool: &PgPool,
    visible: &Visible,
    run: Uuid,
) -> Result<Option<(Value, HarvestFindings)>, DbError> {
    let row: Option<(Value, Value)> = sqlx::query_as(
        "SELECT x.files, x.warnings
         FROM run_results x JOIN runs r ON r.id = x.run_id JOIN tasks t ON t.id = r.task_id
         WHERE x.run_id = $3 AND sees_task(t.repository, t.clis, $1, $2)",
    )
    .bind(visible.repositories())
    .bind(visible.clis())
    .bind(run)
    .fetch_optional(pool)
    .await?;
    let Some((files, stored)) = row else { return Ok(None) };
    let broken = |problem| DbError::inconsistent("run_results", "warnings", run, problem);
    let findings = match stored {
        // From before there was more than words.
        Value::Array(_) => {
            let warnings = serde_json::from_value(stored).map_err(broken)?;
            HarvestFindings { warnings, ..HarvestFindings::default() }
        }
        stored => serde_json::from_value(stored).map_err(broken)?,
    };
    Ok(Some((files, findings)))
}

/// Paths of the changed files of each run of a task, in one query.
///
/// # Errors
/// [`DbError`].
pub async fn paths_of_tasks(pool: &PgPool, tasks: &[Uuid]) -> Result<Vec<(Uuid, Vec<String>)>, DbError> {
    Ok(sqlx::query_as(
        "SELECT r.id, ARRAY(SELECT f ->> 'path' FROM jsonb_array_elements(x.files) AS f)
         FROM runs r JOIN run_results x ON x.run_id = r.id WHERE r.task_id = ANY($1)",
    )
    .bind(tasks)
    .fetch_all(pool)
    .await?)
}
