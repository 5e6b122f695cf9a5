//! Totals over tasks and runs.

use std::collections::BTreeMap;

use sqlx::PgPool;

use crate::db::error::DbError;
use crate::db::visible::Visible;
use crate::domain::task::TaskStatus;
use crate::wire;

/// Totals of the tasks that the caller sees.
///
/// # Errors
/// [`DbError`].
pub async fn of(pool: &PgPool, visible: &Visible) -> Result<wire::task::Stats, DbError> {
    let by_status: Vec<(String, i64)> = sqlx::query_as(
        "SELECT status, count(*) FROM tasks WHERE sees_task(repository, clis, $1, $2) GROUP BY status",
    )
    .bind(visible.repositories())
    .bind(visible.clis())
    .fetch_all(pool)
    .await?;
    let clis: Vec<(String, i64, i64, i64, f64, Option<f64>)> = sqlx::query_as(
        "SELECT r.cli_name, count(*),
                count(*) FILTER (WHERE r.state = 'succeeded'),
                count(*) FILTER (WHERE r.state IN ('queued', 'preparing', 'running', 'harvesting')),
                sum(r.cost_usd),
                avg(extract(epoch FROM r.finished_at - r.started_at))::double precision
         FROM runs r JOIN tasks t ON t.id = r.task_id WHERE sees_task(t.repository, t.clis, $1, $2)
         GROUP BY r.cli_name ORDER BY r.cli_name",
    )
    .bind(visible.repositories())
    .bind(visible.clis())
    .fetch_all(pool)
    .await?;
    let mut tasks_by_status: BTreeMap<String, u64> =
        TaskStatus::ALL.into_iter().map(|status| (status.as_str().to_owned(), 0)).collect();
    tasks_by_status.extend(by_status.into_iter().map(|(status, count)| (status, count.unsigned_abs())));
    Ok(wire::task::Stats {
        total_tasks: tasks_by_status.values().sum(),
        tasks_by_status,
        clis: clis
            .into_iter()
            .map(|(cli_name, total, success, active, total_cost, average_duration)| wire::task::CliStats {
                cli_name,
                total_runs: total.unsigned_abs(),
                success_count: success.unsigned_abs(),
                failure_count: (total - success - active).unsigned_abs(),
                active_count: active.unsigned_abs(),
                total_cost,
                average_duration,
            })
            .collect(),
    })
}
