//! Tasks as clients read them: what could be long is left out, or cut.

use sqlx::PgPool;
use uuid::Uuid;

use crate::db::error::DbError;
use crate::db::tasks::TaskRow;
use crate::db::visible::Visible;
use crate::domain::task::TaskStatus;

/// Where a task stands: nothing of what was asked for is read.
#[derive(Debug, Clone)]
pub struct Standing {
    pub status: TaskStatus,
    /// The number of its last event.
    pub event_seq: i64,
    pub ended: bool,
}

/// # Errors
/// [`DbError`].
pub async fn standing(pool: &PgPool, visible: &Visible, id: Uuid) -> Result<Option<Standing>, DbError> {
    let row: Option<(String, i64, bool)> = sqlx::query_as(
        "SELECT status, event_seq, completed_at IS NOT NULL FROM tasks
         WHERE id = $3 AND sees_task(repository, clis, $1, $2)",
    )
    .bind(visible.repositories())
    .bind(visible.clis())
    .bind(id)
    .fetch_optional(pool)
    .await?;
    let Some((status, event_seq, ended)) = row else { return Ok(None) };
    let status = status.parse().map_err(|problem| DbError::inconsistent("tasks", "status", id, problem))?;
    Ok(Some(Standing { status, event_seq, ended }))
}

/// Characters of a description in a list: a page of whole prompts could be 100 MiB.
const LISTED_DESCRIPTION: i32 = 4096;

/// A page of tasks, newest first, with their descriptions cut to [`LISTED_DESCRIPTION`] and without contexts, of which it could
/// hold 25 MiB.
///
/// # Errors
/// [`DbError`].
pub async fn page(
    pool: &PgPool,
    visible: &Visible,
    status: Option<TaskStatus>,
    offset: i64,
    limit: i64,
) -> Result<(Vec<TaskRow>, i64), DbError> {
    let status = status.map(TaskStatus::as_str);
    let rows = sqlx::query_as(
        "SELECT id, left(description, $6) AS description, repository, base_revision,
                (SELECT coalesce(jsonb_agg(one - 'context' ORDER BY number), '[]')
                 FROM jsonb_array_elements(assignments) WITH ORDINALITY AS each (one, number)) AS assignments,
                EXISTS (SELECT FROM jsonb_array_elements(assignments) AS one WHERE one -> 'context' <> '{}')
                    AS contexts_left_out,
                max_retries, retry_delay, merge_strategy, created_by, submitted_by, status, error, event_seq, cancel_requested_at, created_at,
                updated_at, started_at, completed_at
         FROM tasks WHERE ($3::text IS NULL OR status = $3) AND sees_task(repository, clis, $1, $2)
         ORDER BY created_at DESC, id LIMIT $5 OFFSET $4",
    )
    .bind(visible.repositories())
    .bind(visible.clis())
    .bind(status)
    .bind(offset)
    .bind(limit)
    .bind(LISTED_DESCRIPTION)
    .fetch_all(pool)
    .await?;
    let total = sqlx::query_scalar(
        "SELECT count(*) FROM tasks WHERE ($3::text IS NULL OR status = $3) AND sees_task(repository, clis, $1, $2)",
    )
    .bind(visible.repositories())
    .bind(visible.clis())
    .bind(status)
    .fetch_one(pool)
    .await?;
    Ok((rows, total))
}
