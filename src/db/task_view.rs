//! Tasks as clients see them.

use std::collections::BTreeMap;

use serde_json::json;
use sqlx::PgPool;
use uuid::Uuid;

use crate::db::budgets::BudgetRow;
use crate::db::error::DbError;
use crate::db::runs::{self, RunParts, RunRow};
use crate::db::tasks::TaskRow;
use crate::db::{budgets, let_go, results, run_parts};
use crate::domain::run::ResultStatus;
use crate::domain::task::MergeStrategy;
use crate::wire;
use crate::wire::let_go::LetGo;

/// What belongs to many tasks, by the ids of tasks and runs.
struct Around {
    runs: BTreeMap<Uuid, Vec<RunRow>>,
    paths: BTreeMap<Uuid, Vec<String>>,
    parts: BTreeMap<Uuid, RunParts>,
    budgets: BTreeMap<Uuid, wire::task::Budget>,
    let_go: BTreeMap<Uuid, Vec<LetGo>>,
}

/// Tasks with their runs and results, as clients see them.
///
/// # Errors
/// [`DbError::Inconsistent`] names the row.
pub async fn to_wire(pool: &PgPool, rows: Vec<TaskRow>) -> Result<Vec<wire::task::Task>, DbError> {
    let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
    let all = runs::of_tasks(pool, &ids).await?;
    let run_ids: Vec<Uuid> = all.iter().map(|run| run.id).collect();
    // Given back before the next is asked for: requests that each hold one and want another wait for one another.
    let parts = {
        let mut connection = pool.acquire().await?;
        run_parts::of_runs(&mut connection, &run_ids).await?
    };
    let mut around = Around {
        parts,
        runs: BTreeMap::new(),
        let_go: let_go::of_tasks(pool, &ids).await?,
        paths: results::paths_of_runs(pool, &run_ids).await?.into_iter().collect(),
        budgets: budgets::of_tasks(pool, &ids).await?.iter().filter_map(budget).collect(),
    };
    for run in all {
        around.runs.entry(run.task_id).or_default().push(run);
    }
    rows.iter().map(|row| task_to_wire(row, &around)).collect()
}

/// A task's own budget, if it was given one.
fn budget(row: &BudgetRow) -> Option<(Uuid, wire::task::Budget)> {
    let usd = row.limit_micros.map(|micros| micros as f64 / 1e6);
    let tokens = row.limit_tokens.map(i64::unsigned_abs);
    let given = row.run_id.is_none() && (usd.is_some() || tokens.is_some());
    given.then_some((row.task_id, wire::task::Budget { usd, tokens }))
}

fn task_to_wire(row: &TaskRow, around: &Around) -> Result<wire::task::Task, DbError> {
    let runs = around.runs.get(&row.id).map(Vec::as_slice).unwrap_or_default();
    let broken = |column, problem: String| DbError::inconsistent("tasks", column, row.id, problem);
    let assignments = serde_json::from_str(row.assignments.0.get())
        .map_err(|problem| broken("assignments", problem.to_string()))?;
    let merge_strategy: MergeStrategy = serde_json::from_value(json!(row.merge_strategy))
        .map_err(|problem| broken("merge_strategy", problem.to_string()))?;
    let results: Option<Vec<_>> = row.completed_at.map(|_| {
        runs.iter()
            .filter_map(|run| cli_result(run, around.paths.get(&run.id).cloned().unwrap_or_default()))
            .collect()
    });
    let run_to_wire = |run: &RunRow| run.to_wire(around.parts.get(&run.id).cloned().unwrap_or_default());
    let successes = |results: &[wire::task::CliResult]| {
        results.iter().filter(|result| result.status == ResultStatus::Success).count() as u32
    };
    Ok(wire::task::Task {
        id: row.id,
        description: row.description.clone(),
        status: row.status()?,
        repository: row.repository.clone(),
        base_revision: row.base_revision.clone(),
        cli_assignments: assignments,
        contexts_left_out: row.contexts_left_out,
        max_retries: row.max_retries.unsigned_abs(),
        retry_delay: row.retry_delay.unsigned_abs(),
        merge_strategy,
        budget: around.budgets.get(&row.id).copied(),
        created_by: row.created_by.clone(),
        created_at: row.created_at,
        updated_at: row.updated_at,
        started_at: row.started_at,
        completed_at: row.completed_at,
        error: row.error.clone(),
        runs: runs.iter().map(run_to_wire).collect(),
        success_count: results.as_deref().map(successes),
        failure_count: results.as_deref().map(|all| all.len() as u32 - successes(all)),
        total_cost: Some(runs.iter().map(|run| run.cost_usd).sum()),
        total_duration: results.as_ref().map(|all| all.iter().map(|result| result.duration).sum()),
        best_cli: row.completed_at.and_then(|_| runs::best(runs).map(|run| run.name.clone())),
        cli_results: results,
        let_go: around.let_go.get(&row.id).cloned().unwrap_or_default(),
    })
}

fn cli_result(run: &RunRow, files_modified: Vec<String>) -> Option<wire::task::CliResult> {
    let all = run.files_changed.unsigned_abs();
    let truncated = (files_modified.len() as u64) < u64::from(all);
    Some(wire::task::CliResult {
        cli_name: run.name.clone(),
        status: run.state().result_status()?,
        files_modified_total: truncated.then_some(all),
        files_modified_truncated: truncated,
        files_modified,
        cost: run.cost_usd,
        duration: run.duration(),
        retries: (run.attempt - 1).max(0).unsigned_abs(),
        error: run.error.clone(),
    })
}
