//! An attempt's road through the states, written by the holder of the run's lease and nobody else.
//!
//! Every write goes through [`fenced`]: the task's row first (events), then the run's row by id **and lease**;
//! a runner that lost its lease can write nothing, whatever it believes.

use std::time::Duration;

use chrono::Utc;
use serde_json::{Value, json};
use sqlx::types::Json;
use sqlx::{PgPool, Postgres, Transaction};
use uuid::Uuid;

use crate::db::error::DbError;
use crate::db::events::{self, NewEvent};
use crate::db::queue::Lease;
use crate::db::run_events::{progress_event, state_event};
use crate::db::runs::RunRow;
use crate::db::{audit, quarantine, tasks};
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::domain::event::EventKind;
use crate::domain::run::RunState;
use crate::wire;
use crate::wire::quarantine::Quarantined;

/// A write by the lease's holder: events first, then whatever follows does to the run's row. Not committed,
/// it leaves no trace. Every transition looks at the state that it finds: one that was committed before, whose
/// answer was lost, is not made twice.
pub(super) struct Fenced<'a> {
    pub transaction: Transaction<'a, Postgres>,
    pub run: RunRow,
}

/// Opens a transaction, appends the events (and so locks the task), and locks the run by lease.
pub(super) async fn fenced<'a>(
    pool: &'a PgPool,
    lease: Lease,
    new: &[NewEvent],
) -> Result<Fenced<'a>, DbError> {
    let mut transaction = pool.begin().await?;
    events::append(&mut transaction, lease.task, Some(lease.run), new).await?;
    let run: Option<RunRow> = sqlx::query_as("SELECT * FROM runs WHERE id = $1 AND lease_id = $2 FOR UPDATE")
        .bind(lease.run)
        .bind(lease.id)
        .fetch_optional(&mut *transaction)
        .await?;
    // A cancel can end a run whose claim has expired in the queue; the API's role cannot take the lease off.
    let run = run.filter(|run| !run.state().has_ended()).ok_or(DbError::LeaseLost(lease.run))?;
    Ok(Fenced { transaction, run })
}

pub(super) fn audit_state(lease: Lease, state: RunState, details: Value) -> Entry {
    Entry {
        actor: Actor::Runner(lease.runner.to_string()),
        action: "run.state",
        object: format!("run:{}", lease.run),
        outcome: Outcome::Done,
        details: json!({ "task": lease.task, "state": state, "facts": details }),
    }
}

/// `queued` → `preparing`, as the next attempt. `None` if the task is cancelled: the run must end so.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn begin_attempt(pool: &PgPool, lease: Lease, run: &RunRow) -> Result<Option<RunRow>, DbError> {
    let attempt = run.attempt + 1;
    let new = [
        state_event(run, RunState::Preparing, attempt, None),
        progress_event(
            run,
            RunState::Preparing,
            format!("attempt {attempt}: preparing worktree and sandbox"),
        ),
    ];
    let mut write = fenced(pool, lease, &new).await?;
    if write.run.state() == RunState::Preparing && write.run.attempt == attempt {
        return Ok(Some(write.run));
    }
    if tasks::cancel_requested(&mut write.transaction, lease.task).await? {
        return Ok(None);
    }
    let run: RunRow = sqlx::query_as(
        "UPDATE runs SET state = 'preparing', attempt = $2, container_id = NULL, verdict = NULL, told = NULL, error = NULL,
                         contained = NULL,
                         stdout_offset = 0, stderr_offset = 0, cli_started_at = NULL,
                         started_at = coalesce(started_at, now())
         WHERE id = $1 RETURNING *",
    )
    .bind(lease.run)
    .bind(attempt)
    .fetch_one(&mut *write.transaction)
    .await?;
    sqlx::query("INSERT INTO attempts (run_id, number, runner_id) VALUES ($1, $2, $3)")
        .bind(lease.run)
        .bind(attempt)
        .bind(lease.runner)
        .execute(&mut *write.transaction)
        .await?;
    tasks::mark_running(&mut write.transaction, lease.task).await?;
    audit::append(
        &mut write.transaction,
        &audit_state(lease, RunState::Preparing, json!({ "attempt": attempt })),
    )
    .await?;
    write.transaction.commit().await?;
    Ok(Some(run))
}

/// What the sandbox of an attempt is.
pub struct SandboxFacts<'a> {
    pub container: &'a str,
    pub base_commit: Option<&'a str>,
    /// `overlay` or `copy`.
    pub worktree: &'a str,
    /// Image digest, profile hash, limits.
    pub record: &'a Value,
    /// What of the repository's own configuration it does not see.
    pub quarantined: &'a [Quarantined],
}

/// `preparing` → `running`: committed **before** the job is handed to the shim, so that an attempt
/// that is still `preparing` has certainly not begun and may be started over.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn set_running(
    pool: &PgPool,
    lease: Lease,
    run: &RunRow,
    facts: &SandboxFacts<'_>,
) -> Result<(), DbError> {
    let new = [
        state_event(run, RunState::Running, run.attempt, None),
        progress_event(run, RunState::Running, format!("attempt {}: the CLI is running", run.attempt)),
    ];
    let mut write = fenced(pool, lease, &new).await?;
    if write.run.state() == RunState::Running && write.run.container_id.as_deref() == Some(facts.container) {
        return Ok(());
    }
    sqlx::query(
        "UPDATE runs SET state = 'running', container_id = $2, base_commit = $3, quarantined = $4, cli_started_at = now()
         WHERE id = $1",
    )
    .bind(lease.run)
    .bind(facts.container)
    .bind(facts.base_commit)
    .bind(Json(facts.quarantined))
    .execute(&mut *write.transaction)
    .await?;
    sqlx::query("UPDATE attempts SET sandbox = $3, worktree = $4 WHERE run_id = $1 AND number = $2")
        .bind(lease.run)
        .bind(run.attempt)
        .bind(facts.record)
        .bind(facts.worktree)
        .execute(&mut *write.transaction)
        .await?;
    let details = json!({ "attempt": run.attempt, "container": facts.container, "worktree": facts.worktree,
                          "base_commit": facts.base_commit, "sandbox": facts.record,
                          "quarantined": facts.quarantined });
    audit::append(&mut write.transaction, &audit_state(lease, RunState::Running, details)).await?;
    quarantine::tell(&mut write.transaction, lease, run, facts.base_commit, facts.quarantined).await?;
    write.transaction.commit().await?;
    Ok(())
}

/// Output blocks and what was read from them, with the new ends of both streams.
pub struct Output {
    pub events: Vec<NewEvent>,
    /// Ends of standard output and standard error before this write.
    pub before: (i64, i64),
    pub stdout: i64,
    pub stderr: i64,
    /// Committed output of all attempts after this write.
    pub total: i64,
    /// What the CLI says that it cost; `None` leaves the figure to the gateway.
    pub cost_usd: Option<f64>,
    /// What the CLI has said of itself so far.
    pub told: Option<Value>,
}

/// Safe to repeat: a write that was committed already (its answer was lost) is seen by the offsets.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn append_output(pool: &PgPool, lease: Lease, output: &Output) -> Result<(), DbError> {
    let mut transaction = pool.begin().await?;
    events::append(&mut transaction, lease.task, Some(lease.run), &output.events).await?;
    let done = sqlx::query(
        "UPDATE runs SET stdout_offset = $3, stderr_offset = $4, output_bytes = $5, cost_usd = coalesce($6, cost_usd),
                         told = $9
         WHERE id = $1 AND lease_id = $2 AND state = 'running' AND stdout_offset = $7 AND stderr_offset = $8",
    )
    .bind(lease.run)
    .bind(lease.id)
    .bind(output.stdout)
    .bind(output.stderr)
    .bind(output.total)
    .bind(output.cost_usd)
    .bind(output.before.0)
    .bind(output.before.1)
    .bind(&output.told)
    .execute(&mut *transaction)
    .await?;
    if done.rows_affected() == 1 {
        transaction.commit().await?;
        return Ok(());
    }
    transaction.rollback().await?;
    let committed: Option<(i64, i64)> =
        sqlx::query_as("SELECT stdout_offset, stderr_offset FROM runs WHERE id = $1 AND lease_id = $2")
            .bind(lease.run)
            .bind(lease.id)
            .fetch_optional(pool)
            .await?;
    if committed == Some((output.stdout, output.stderr)) {
        Ok(())
    } else {
        Err(DbError::LeaseLost(lease.run))
    }
}

/// Tells the run's watchers something.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn notice(
    pool: &PgPool,
    lease: Lease,
    run: &RunRow,
    kind: EventKind,
    message: String,
) -> Result<(), DbError> {
    let notice = wire::event::Notice {
        task_id: lease.task,
        run: Some(run.name.clone()),
        message,
        timestamp: Utc::now(),
    };
    let write = fenced(pool, lease, &[NewEvent::other(kind, &notice)]).await?;
    write.transaction.commit().await?;
    Ok(())
}

/// For how long the CLI of an attempt has been at work, by the clock that wrote down its start.
///
/// # Errors
/// [`DbError`].
pub async fn running_for(pool: &PgPool, run: Uuid) -> Result<Duration, DbError> {
    let seconds: Option<f64> = sqlx::query_scalar(
        "SELECT extract(epoch FROM now() - cli_started_at)::double precision FROM runs WHERE id = $1",
    )
    .bind(run)
    .fetch_one(pool)
    .await?;
    Ok(Duration::try_from_secs_f64(seconds.unwrap_or_default()).unwrap_or_default())
}

/// What the CLI of a running attempt is about to be told to end for: whoever goes on with the attempt knows it.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn set_ending(pool: &PgPool, lease: Lease, verdict: &Value) -> Result<(), DbError> {
    let done =
        sqlx::query("UPDATE runs SET verdict = $3 WHERE id = $1 AND lease_id = $2 AND state = 'running'")
            .bind(lease.run)
            .bind(lease.id)
            .bind(verdict)
            .execute(pool)
            .await?;
    if done.rows_affected() == 0 { Err(DbError::LeaseLost(lease.run)) } else { Ok(()) }
}

/// `running` → `harvesting`, with how the CLI ended.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn set_harvesting(
    pool: &PgPool,
    lease: Lease,
    run: &RunRow,
    verdict: &Value,
) -> Result<(), DbError> {
    let new = [
        state_event(run, RunState::Harvesting, run.attempt, None),
        progress_event(run, RunState::Harvesting, "the CLI has ended; collecting its changes".to_owned()),
    ];
    let mut write = fenced(pool, lease, &new).await?;
    if write.run.state() == RunState::Harvesting {
        return Ok(());
    }
    sqlx::query("UPDATE runs SET state = 'harvesting', verdict = $2 WHERE id = $1")
        .bind(lease.run)
        .bind(verdict)
        .execute(&mut *write.transaction)
        .await?;
    let details = json!({ "attempt": run.attempt, "verdict": verdict });
    audit::append(&mut write.transaction, &audit_state(lease, RunState::Harvesting, details)).await?;
    write.transaction.commit().await?;
    Ok(())
}
