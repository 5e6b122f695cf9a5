//! The record of secrets that were kept out of what is stored, or found where they were not kept out.

use chrono::Utc;
use serde_json::json;
use sqlx::PgPool;

use crate::db::attempts::fenced;
use crate::db::audit;
use crate::db::error::DbError;
use crate::db::events::NewEvent;
use crate::db::queue::Lease;
use crate::db::runs::RunRow;
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::domain::event::EventKind;
use crate::wire;

/// Something that looks like a secret was taken out of a run's output: event and audit entry, once a run.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn of_output(pool: &PgPool, lease: Lease, run: &RunRow) -> Result<(), DbError> {
    let action = "run.redact";
    let known: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM events WHERE task_id = $1 AND run_id = $2 AND kind = 'security'
                        AND payload->>'call' = $3)",
    )
    .bind(lease.task)
    .bind(lease.run)
    .bind(action)
    .fetch_one(pool)
    .await?;
    if known {
        return Ok(());
    }
    let event = wire::event::Security {
        task_id: run.task_id,
        run: run.name.clone(),
        run_id: run.id,
        attempt: run.attempt.unsigned_abs(),
        call: action.to_owned(),
        form: String::new(),
        arguments: Vec::new(),
        count: 1,
        message: "its output holds what looks like a secret; what is stored has * in its place".to_owned(),
        timestamp: Utc::now(),
    };
    record(pool, lease, run, action, Some(NewEvent::other(EventKind::Security, &event)), json!({})).await
}

/// The branch of a run holds what looks like a secret, in these of its files. The warning is with the run's others.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn in_branch(pool: &PgPool, lease: Lease, run: &RunRow, paths: &[String]) -> Result<(), DbError> {
    let details = json!({ "files": paths });
    record(pool, lease, run, "result.secret", None, details).await
}

async fn record(
    pool: &PgPool,
    lease: Lease,
    run: &RunRow,
    action: &'static str,
    event: Option<NewEvent>,
    mut details: serde_json::Value,
) -> Result<(), DbError> {
    details["task"] = json!(lease.task);
    details["attempt"] = json!(run.attempt);
    let mut write = fenced(pool, lease, event.as_slice()).await?;
    let entry = Entry {
        actor: Actor::Runner(lease.runner.to_string()),
        action,
        object: format!("run:{}", run.id),
        outcome: Outcome::Done,
        details,
    };
    audit::append(&mut write.transaction, &entry).await?;
    write.transaction.commit().await?;
    Ok(())
}
