//! What was found in sandboxes before their CLIs began.

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::db::attempts::fenced;
use crate::db::audit;
use crate::db::error::DbError;
use crate::db::queue::Lease;
use crate::db::runs::RunRow;
use crate::domain::audit::{Actor, Entry, Outcome};

/// What a shim found in its sandbox, and what of it nobody asked for: into the attempt's record and the audit trail.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn record(
    pool: &PgPool,
    lease: Lease,
    run: &RunRow,
    facts: &Value,
    surprises: &[String],
) -> Result<(), DbError> {
    let mut write = fenced(pool, lease, &[]).await?;
    let contained = surprises.is_empty();
    sqlx::query("UPDATE runs SET contained = $2 WHERE id = $1")
        .bind(lease.run)
        .bind(contained)
        .execute(&mut *write.transaction)
        .await?;
    let record = json!({ "surprises": surprises, "found": facts });
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
        outcome: if contained { Outcome::Done } else { Outcome::Refused },
        details: json!({ "task": lease.task, "attempt": run.attempt, "containment": record }),
    };
    audit::append(&mut write.transaction, &entry).await?;
    write.transaction.commit().await?;
    Ok(())
}
