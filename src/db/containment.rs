//! What was found in sandboxes before their CLIs began.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::{PgExecutor, PgPool};
use uuid::Uuid;

use crate::db::attempts::fenced;
use crate::db::audit;
use crate::db::error::DbError;
use crate::db::queue::Lease;
use crate::db::runs::RunRow;
use crate::db::security_events;
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::domain::security_event::{SecurityEvent, SecurityEventKind};
use crate::wire::containment::{Containment, ContainmentState};

/// What came of the look into a sandbox, with what the shim said (`facts`): into the attempt's record and the audit trail.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn record(
    pool: &PgPool,
    lease: Lease,
    run: &RunRow,
    proof: &Containment,
    facts: &Value,
) -> Result<(), DbError> {
    let mut write = fenced(pool, lease, &[]).await?;
    let contained = match proof.state {
        ContainmentState::Proved => Some(true),
        ContainmentState::ProvedInPart => None,
        ContainmentState::Refused => Some(false),
    };
    sqlx::query("UPDATE runs SET contained = $2 WHERE id = $1")
        .bind(lease.run)
        .bind(contained)
        .execute(&mut *write.transaction)
        .await?;
    let mut record = json!(proof);
    record["surprises"] = json!(proof.surprises);
    record["found"] = facts.clone();
    sqlx::query("UPDATE attempts SET containment = $3 WHERE run_id = $1 AND number = $2")
        .bind(lease.run)
        .bind(run.attempt)
        .bind(&record)
        .execute(&mut *write.transaction)
        .await?;
    let entry = Entry {
        actor: Actor::Runner(lease.runner.to_string()),
        action: "sandbox.contained",
        object: format!("run:{}", lease.run),
        outcome: if contained == Some(false) { Outcome::Refused } else { Outcome::Done },
        details: json!({ "task": lease.task, "attempt": run.attempt, "containment": record }),
    };
    audit::append(&mut write.transaction, &entry).await?;
    if proof.state == ContainmentState::Refused {
        // What was found instead is the shim's word: it is in the trail.
        let details = json!({ "attempt": run.attempt, "run": run.name, "surprises": proof.surprises });
        let event = SecurityEvent::new(
            SecurityEventKind::ContainmentRefused,
            &format!("run:{}", lease.run),
            &details,
        );
        let event = event.of_run(lease.task, lease.run).once(format!("{}:{}", lease.run, run.attempt));
        security_events::append(&mut write.transaction, &event).await?;
    }
    write.transaction.commit().await?;
    Ok(())
}

/// Of each of these runs the last sandbox that was looked into; without what the shim said, which the audit trail has.
///
/// # Errors
/// [`DbError`].
pub async fn of_runs(
    executor: impl PgExecutor<'_>,
    runs: &[Uuid],
) -> Result<BTreeMap<Uuid, Containment>, DbError> {
    let rows: Vec<(Uuid, Value)> = sqlx::query_as(
        "SELECT DISTINCT ON (run_id) run_id, containment - 'found' FROM attempts
         WHERE run_id = ANY($1) AND containment IS NOT NULL ORDER BY run_id, number DESC",
    )
    .bind(runs)
    .fetch_all(executor)
    .await?;
    // Records from before the checks were kept do not say what was seen, and neither do we.
    let readable = |(run, value)| Some((run, serde_json::from_value(value).ok()?));
    Ok(rows.into_iter().filter_map(readable).collect())
}
