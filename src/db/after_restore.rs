//! What becomes of runs that were under way when their backup was made: whatever they did since is not known, so none of them is
//! started again unasked.

use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::db::error::DbError;
use crate::db::events;
use crate::db::run_events::{append_result, progress_event, state_event};
use crate::db::runs::RunRow;
use crate::db::{audit, tasks};
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::domain::run::RunState;

/// How many runs went which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Settled {
    pub lost: u64,
    pub queued: u64,
}

/// Ends every run that has not ended as `lost`; with `requeue`, gives those another attempt that their task allows one.
///
/// # Errors
/// [`DbError`].
pub async fn settle(connection: &mut PgConnection, requeue: bool, reason: &str) -> Result<Settled, DbError> {
    let unfinished: Vec<(Uuid, i32, bool)> = sqlx::query_as(
        "SELECT r.id, t.max_retries, t.cancel_requested_at IS NOT NULL FROM runs r JOIN tasks t ON t.id = r.task_id
         WHERE r.finished_at IS NULL ORDER BY r.created_at, r.id",
    )
    .fetch_all(&mut *connection)
    .await?;
    // Whoever served them is gone.
    sqlx::query("UPDATE model_grants SET state = 'closed', closed_at = now() WHERE state <> 'closed'")
        .execute(&mut *connection)
        .await?;
    let mut settled = Settled::default();
    for (id, retries, cancelled) in unfinished {
        let statement = "SELECT * FROM runs WHERE id = $1 FOR UPDATE";
        let run: RunRow = sqlx::query_as(statement).bind(id).fetch_one(&mut *connection).await?;
        if run.state().has_ended() {
            continue;
        }
        let begun = run.state() != RunState::Queued;
        if requeue && !cancelled && (!begun || run.attempt <= retries) {
            queue(connection, &run, begun, reason).await?;
            settled.queued += 1;
        } else {
            lose(connection, &run, reason).await?;
            settled.lost += 1;
        }
    }
    Ok(settled)
}

async fn lose(connection: &mut PgConnection, run: &RunRow, reason: &str) -> Result<(), DbError> {
    let new = [state_event(run, RunState::Lost, run.attempt, Some(reason))];
    events::append(connection, run.task_id, Some(run.id), &new).await?;
    let ended: RunRow = sqlx::query_as(
        "UPDATE runs SET state = 'lost', error = $2, decided_by = 'the restore', finished_at = now(), lease_id = NULL,
                         lease_expires_at = NULL
         WHERE id = $1 RETURNING *",
    )
    .bind(run.id)
    .bind(reason)
    .fetch_one(&mut *connection)
    .await?;
    end_attempt(connection, run, reason).await?;
    append_result(connection, &ended, Vec::new(), &[]).await?;
    audit::append(connection, &entry(run, RunState::Lost, reason)).await?;
    tasks::settle(connection, run.task_id, &Actor::Host).await
}

async fn queue(
    connection: &mut PgConnection,
    run: &RunRow,
    begun: bool,
    reason: &str,
) -> Result<(), DbError> {
    if begun {
        let new = [
            state_event(run, RunState::Queued, run.attempt, Some(reason)),
            progress_event(run, RunState::Queued, format!("attempt {} ended ({reason})", run.attempt)),
        ];
        events::append(connection, run.task_id, Some(run.id), &new).await?;
        end_attempt(connection, run, reason).await?;
    }
    sqlx::query(
        "UPDATE runs SET state = 'queued', container_id = NULL, verdict = NULL, lease_id = NULL, lease_expires_at = NULL,
                         runner_id = NULL, not_before = now()
         WHERE id = $1",
    )
    .bind(run.id)
    .execute(&mut *connection)
    .await?;
    audit::append(connection, &entry(run, RunState::Queued, reason)).await
}

async fn end_attempt(connection: &mut PgConnection, run: &RunRow, reason: &str) -> Result<(), DbError> {
    sqlx::query(
        "UPDATE attempts SET state = 'lost', error = $3, finished_at = now()
         WHERE run_id = $1 AND number = $2 AND finished_at IS NULL",
    )
    .bind(run.id)
    .bind(run.attempt)
    .bind(reason)
    .execute(connection)
    .await?;
    Ok(())
}

fn entry(run: &RunRow, state: RunState, reason: &str) -> Entry {
    Entry {
        actor: Actor::Host,
        action: "run.state",
        object: format!("run:{}", run.id),
        outcome: Outcome::Done,
        details: json!({ "task": run.task_id, "state": state, "facts": { "attempt": run.attempt, "error": reason } }),
    }
}
