//! The end of an attempt: with a result, without one, or for another try. Fenced as all of its road.

use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool};

use crate::db::attempts::{audit_state, fenced};
use crate::db::error::DbError;
use crate::db::queue::Lease;
use crate::db::run_events::{append_result, progress_event, state_event};
use crate::db::runs::RunRow;
use crate::db::{audit, results, tasks};
use crate::domain::audit::{Actor, Entry};
use crate::domain::run::RunState;
use crate::wire::run::HarvestFindings;

/// How an attempt ended.
#[derive(Debug, Clone)]
pub struct Ending {
    pub state: RunState,
    pub error: Option<String>,
    pub exit_code: Option<i32>,
    /// What the state rests on, in words.
    pub decided_by: String,
}

/// The branch that an attempt left.
#[derive(Debug, Clone)]
pub struct Harvested {
    pub branch: String,
    pub commit: String,
    pub files_changed: i32,
    pub insertions: i64,
    pub deletions: i64,
    pub result: results::ResultRow,
    /// The first of the changed ones, as many as are named.
    pub paths: Vec<String>,
    /// Changed paths that a CLI, an editor or a build would obey; the first of them.
    pub flagged: Vec<String>,
    /// What the audit trail keeps of it: files with their hashes.
    pub record: Value,
}

async fn end_attempt(transaction: &mut PgConnection, run: &RunRow, ending: &Ending) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE attempts SET state = $3, error = $4, exit_code = $5, finished_at = now()
         WHERE run_id = $1 AND number = $2",
    )
    .bind(run.id)
    .bind(run.attempt)
    .bind(ending.state.as_str())
    .bind(&ending.error)
    .bind(ending.exit_code)
    .execute(transaction)
    .await?;
    Ok(())
}

/// The run's end, with its result; and the task's, when it was the last.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn finish(
    pool: &PgPool,
    lease: Lease,
    run: &RunRow,
    ending: &Ending,
    harvested: Option<&Harvested>,
    findings: &HarvestFindings,
) -> Result<(), DbError> {
    let warnings = findings.warnings.as_slice();
    let new = [state_event(run, ending.state, run.attempt, ending.error.as_deref())];
    let mut write = fenced(pool, lease, &new).await?;
    let connection = &mut *write.transaction;
    let finished: RunRow = sqlx::query_as(
        "UPDATE runs SET state = $2, error = $3, exit_code = $4, branch = $5, commit_hash = $6, files_changed = $7,
                         insertions = $8, deletions = $9, decided_by = $10, finished_at = now(), lease_id = NULL, lease_expires_at = NULL
         WHERE id = $1 RETURNING *",
    )
    .bind(lease.run)
    .bind(ending.state.as_str())
    .bind(&ending.error)
    .bind(ending.exit_code)
    .bind(harvested.map(|h| &h.branch))
    .bind(harvested.map(|h| &h.commit))
    .bind(harvested.map_or(0, |h| h.files_changed))
    .bind(harvested.map_or(0, |h| h.insertions))
    .bind(harvested.map_or(0, |h| h.deletions))
    .bind(&ending.decided_by)
    .fetch_one(&mut *connection)
    .await?;
    // What was left out is told also of a run that changed nothing else.
    let paths = harvested.map(|h| h.paths.clone()).unwrap_or_default();
    match harvested {
        Some(harvested) => results::store(connection, lease.run, &harvested.result, &paths).await?,
        None if warnings.is_empty() => {}
        None => {
            results::store(connection, lease.run, &results::ResultRow::unchanged(findings), &paths).await?
        }
    }
    end_attempt(connection, run, ending).await?;
    append_result(connection, &finished, paths, warnings).await?;
    let details = json!({ "attempt": run.attempt, "error": ending.error, "exit_code": ending.exit_code,
                          "decided_by": ending.decided_by,
                          "branch": finished.branch, "commit": finished.commit_hash,
                          "files": finished.files_changed, "warnings": warnings.len(),
                          "flagged": harvested.map(|h| &h.flagged) });
    if let Some(harvested) = harvested {
        let mut details = harvested.record.clone();
        details["task"] = json!(lease.task);
        details["attempt"] = json!(run.attempt);
        let state = audit_state(lease, ending.state, Value::Null);
        audit::append(connection, &Entry { action: "run.harvest", details, ..state }).await?;
    }
    audit::append(connection, &audit_state(lease, ending.state, details)).await?;
    tasks::settle(connection, lease.task, &Actor::Runner(lease.runner.to_string())).await?;
    write.transaction.commit().await?;
    Ok(())
}

/// Back to `queued` for another attempt after `delay_secs`.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn requeue(
    pool: &PgPool,
    lease: Lease,
    run: &RunRow,
    ending: &Ending,
    delay_secs: u32,
) -> Result<(), DbError> {
    let why = ending.error.as_deref().unwrap_or(ending.state.as_str());
    let new = [
        state_event(run, RunState::Queued, run.attempt, Some(why)),
        progress_event(
            run,
            RunState::Queued,
            format!("attempt {} ended ({why}); next in {delay_secs} s", run.attempt),
        ),
    ];
    let mut write = fenced(pool, lease, &new).await?;
    sqlx::query(
        "UPDATE runs SET state = 'queued', container_id = NULL, verdict = NULL, lease_id = NULL, lease_expires_at = NULL,
                         not_before = now() + make_interval(secs => $2)
         WHERE id = $1",
    )
    .bind(lease.run)
    .bind(f64::from(delay_secs))
    .execute(&mut *write.transaction)
    .await?;
    end_attempt(&mut write.transaction, &write.run, ending).await?;
    let details = json!({ "attempt": run.attempt, "ended": ending.state, "error": ending.error, "retry_in_secs": delay_secs });
    audit::append(&mut write.transaction, &audit_state(lease, RunState::Queued, details)).await?;
    write.transaction.commit().await?;
    Ok(())
}
