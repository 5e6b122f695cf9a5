//! Appends audit entries, in the transaction of the act that they record.

use sqlx::PgConnection;

use crate::db::error::DbError;
use crate::domain::audit::Entry;

/// # Errors
/// Any failure must undo the act: an act that can't be audited is refused.
pub async fn append(connection: &mut PgConnection, entry: &Entry) -> Result<(), DbError> {
    sqlx::query(
        "INSERT INTO audit_entries (actor_kind, actor_id, action, object, outcome, details)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(entry.actor.kind())
    .bind(entry.actor.id().as_deref())
    .bind(entry.action)
    .bind(&entry.object)
    .bind(entry.outcome.as_str())
    .bind(&entry.details)
    .execute(connection)
    .await?;
    Ok(())
}
