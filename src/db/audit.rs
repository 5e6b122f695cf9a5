//! Appends audit entries, in the transaction of the act that they record.

use sqlx::PgConnection;

use crate::db::error::DbError;
use crate::domain::audit::Record;

/// # Errors
/// Any failure must undo the act: an act that can't be audited is refused.
pub async fn append(connection: &mut PgConnection, record: &(impl Record + Sync)) -> Result<(), DbError> {
    let (entry, request) = (record.entry(), record.request());
    sqlx::query(
        "INSERT INTO audit_entries (actor_kind, actor_id, action, object, outcome, details, request_id, address, route)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::inet, $9)",
    )
    .bind(entry.actor.kind())
    .bind(entry.actor.id().as_deref())
    .bind(entry.action)
    .bind(&entry.object)
    .bind(entry.outcome.as_str())
    .bind(&entry.details)
    .bind(request.map(|request| &request.id))
    .bind(request.and_then(|request| request.address).map(|address| address.to_string()))
    .bind(request.and_then(|request| request.route.as_deref()))
    .execute(connection)
    .await?;
    Ok(())
}
