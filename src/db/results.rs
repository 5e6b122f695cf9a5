//! What a run brought back: patch, files, warnings. The commit itself is in the runner's repository.

use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::db::error::DbError;
use crate::db::visible::Visible;
use crate::wire::run::HarvestFindings;

/// Changed paths of a run that tasks and events name. All of them are in its list of files.
const LISTED_PATHS: usize = 1000;
const LISTED_BYTES: usize = 64 << 10;
/// Bytes of such paths in one answer, and the least that each of its runs gets.
const ANSWER_BYTES: i64 = 4 << 20;
const RUN_BYTES: i64 = 1 << 10;
/// Bytes of a page of changed files.
const PAGE_BYTES: i64 = 8 << 20;

/// The first of the changed paths, as many as are named.
pub fn listed(mut paths: Vec<String>) -> Vec<String> {
    let mut bytes = 0;
    let fit = paths.iter().take(LISTED_PATHS).take_while(|path| {
        bytes += path.len();
        bytes <= LISTED_BYTES
    });
    let fit = fit.count();
    paths.truncate(fit);
    paths
}

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

/// A part of a patch.
#[derive(Debug, Clone, Default, sqlx::FromRow)]
pub struct PatchRow {
    pub patch: Vec<u8>,
    /// Bytes of the whole.
    pub bytes: i64,
    pub truncated: bool,
}

/// Some of a run's changed files.
#[derive(Debug, Clone, Default)]
pub struct FilesPage {
    pub files: Vec<Value>,
    /// All of them.
    pub total: u64,
    pub findings: HarvestFindings,
}

/// # Errors
/// [`DbError`].
pub async fn store(
    connection: &mut PgConnection,
    run: Uuid,
    result: &ResultRow,
    paths: &[String],
) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO run_results (run_id, patch, patch_truncated, files, warnings, paths) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (run_id) DO UPDATE SET patch = $2, patch_truncated = $3, files = $4, warnings = $5, paths = $6",
    )
    .bind(run)
    .bind(&result.patch)
    .bind(result.patch_truncated)
    .bind(&result.files)
    .bind(&result.warnings)
    .bind(paths)
    .execute(connection)
    .await?;
    Ok(())
}

/// At most the first `max_bytes` of a run's patch; the whole without.
///
/// # Errors
/// [`DbError`].
pub async fn patch(
    pool: &PgPool,
    visible: &Visible,
    run: Uuid,
    max_bytes: Option<i32>,
) -> Result<Option<PatchRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT substring(x.patch FROM 1 FOR coalesce($4, octet_length(x.patch))) AS patch,
                octet_length(x.patch)::bigint AS bytes, x.patch_truncated AS truncated
         FROM run_results x JOIN runs r ON r.id = x.run_id JOIN tasks t ON t.id = r.task_id
         WHERE x.run_id = $3 AND sees_task(t.repository, t.clis, $1, $2)",
    )
    .bind(visible.repositories())
    .bind(visible.clis())
    .bind(run)
    .bind(max_bytes)
    .fetch_optional(pool)
    .await?)
}

/// A run's changed files after the first `after`, at most `limit` of them and as many as an answer should hold; at
/// least one, if there is one.
///
/// # Errors
/// [`DbError`].
pub async fn files(
    pool: &PgPool,
    visible: &Visible,
    run: Uuid,
    after: u64,
    limit: u32,
) -> Result<Option<FilesPage>, DbError> {
    let head: Option<(i64, Value)> = sqlx::query_as(
        "SELECT jsonb_array_length(x.files)::bigint, x.warnings
         FROM run_results x JOIN runs r ON r.id = x.run_id JOIN tasks t ON t.id = r.task_id
         WHERE x.run_id = $3 AND sees_task(t.repository, t.clis, $1, $2)",
    )
    .bind(visible.repositories())
    .bind(visible.clis())
    .bind(run)
    .fetch_optional(pool)
    .await?;
    let Some((total, stored)) = head else { return Ok(None) };
    let files: Vec<Value> = sqlx::query_scalar(
        "SELECT file FROM (
             SELECT file, number, sum(octet_length(file::text)) OVER (ORDER BY number) AS bytes
             FROM run_results x JOIN runs r ON r.id = x.run_id JOIN tasks t ON t.id = r.task_id,
                  jsonb_array_elements(x.files) WITH ORDINALITY AS listed (file, number)
             WHERE x.run_id = $3 AND sees_task(t.repository, t.clis, $1, $2)
               AND number > $4 AND number <= $4 + $5) AS page
         WHERE bytes <= $6 OR number = $4 + 1 ORDER BY number",
    )
    .bind(visible.repositories())
    .bind(visible.clis())
    .bind(run)
    .bind(i64::try_from(after.min(1 << 40)).unwrap_or_default())
    .bind(i64::from(limit))
    .bind(PAGE_BYTES)
    .fetch_all(pool)
    .await?;
    // Gone since it was counted.
    if files.is_empty() && after < total.unsigned_abs() {
        return Ok(None);
    }
    Ok(Some(FilesPage { files, total: total.unsigned_abs(), findings: findings(run, stored)? }))
}

fn findings(run: Uuid, stored: Value) -> Result<HarvestFindings, DbError> {
    let broken = |problem| DbError::inconsistent("run_results", "warnings", run, problem);
    Ok(match stored {
        // From before there was more than words.
        Value::Array(_) => {
            let warnings = serde_json::from_value(stored).map_err(broken)?;
            HarvestFindings { warnings, ..HarvestFindings::default() }
        }
        stored => serde_json::from_value(stored).map_err(broken)?,
    })
}

/// The first paths of the changed files of each of these runs, in one query. The answer is bounded, however many runs
/// and paths there are.
///
/// # Errors
/// [`DbError`].
pub async fn paths_of_runs(pool: &PgPool, runs: &[Uuid]) -> Result<Vec<(Uuid, Vec<String>)>, DbError> {
    let each = ANSWER_BYTES / i64::try_from(runs.len()).unwrap_or(i64::MAX).max(1);
    Ok(sqlx::query_as(
        "SELECT run_id, ARRAY(
             SELECT path FROM (
                 SELECT path, number, sum(octet_length(path)) OVER (ORDER BY number) AS bytes
                 FROM unnest(paths) WITH ORDINALITY AS listed (path, number)) AS first
             WHERE bytes <= $2 ORDER BY number)
         FROM run_results WHERE run_id = ANY($1)",
    )
    .bind(runs)
    .bind(each.max(RUN_BYTES))
    .fetch_all(pool)
    .await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_short_paths_are_named() {
        let paths = |count: usize, bytes: usize| vec!["x".repeat(bytes); count];
        assert_eq!(listed(paths(3, 10)).len(), 3);
        assert_eq!(listed(paths(5000, 10)).len(), LISTED_PATHS);
        assert_eq!(listed(paths(5000, 1024)).len(), 64);
        assert_eq!(listed(paths(1, LISTED_BYTES + 1)).len(), 0);
    }
}
