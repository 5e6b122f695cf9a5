//! What of a task was let go, for those who would look for it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::{PgExecutor, PgPool};
use uuid::Uuid;

use crate::db::error::DbError;
use crate::db::visible::Visible;
use crate::wire::let_go::LetGo;

/// Ids and rows of each of these tasks. Who asks has found the tasks already.
///
/// # Errors
/// [`DbError`].
pub async fn of_tasks(
    executor: impl PgExecutor<'_>,
    tasks: &[Uuid],
) -> Result<BTreeMap<Uuid, Vec<LetGo>>, DbError> {
    let rows: Vec<(Uuid, String, String, DateTime<Utc>)> =
        sqlx::query_as("SELECT task_id, what, rule, at FROM let_go WHERE task_id = ANY($1) ORDER BY what")
            .bind(tasks)
            .fetch_all(executor)
            .await?;
    let mut found: BTreeMap<Uuid, Vec<LetGo>> = BTreeMap::new();
    for (task, what, rule, at) in rows {
        found.entry(task).or_default().push(LetGo { what, rule, at });
    }
    Ok(found)
}

/// The same of one task, if it is seen.
///
/// # Errors
/// [`DbError`].
pub async fn of_task(pool: &PgPool, visible: &Visible, task: Uuid) -> Result<Vec<LetGo>, DbError> {
    let rows: Vec<(String, String, DateTime<Utc>)> = sqlx::query_as(
        "SELECT l.what, l.rule, l.at FROM let_go l JOIN tasks t ON t.id = l.task_id
         WHERE l.task_id = $3 AND sees_task(t.repository, t.clis, $1, $2) ORDER BY l.what",
    )
    .bind(visible.repositories())
    .bind(visible.clis())
    .bind(task)
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|(what, rule, at)| LetGo { what, rule, at }).collect())
}

/// Those of these tasks whose results were let go.
///
/// # Errors
/// [`DbError`].
pub async fn without_results(pool: &PgPool, tasks: &[Uuid]) -> Result<Vec<Uuid>, DbError> {
    let found = sqlx::query_scalar("SELECT task_id FROM let_go WHERE what = 'results' AND task_id = ANY($1)")
        .bind(tasks)
        .fetch_all(pool)
        .await?;
    Ok(found)
}
