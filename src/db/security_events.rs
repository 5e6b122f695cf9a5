//! Security events, written in the transaction of the act that they tell of, and never changed.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use crate::db::error::DbError;
use crate::domain::security_event::{SecurityEvent, Severity};
use crate::wire;
use crate::wire::security_event::SecurityEventFilter;

/// Tells of an act. One that was told with the same `once` is not told again.
///
/// # Errors
/// Any failure must undo the act.
pub async fn append(connection: &mut PgConnection, event: &SecurityEvent) -> Result<(), DbError> {
    // Without naming the columns of the conflict: that would take a right to read them.
    sqlx::query(
        "INSERT INTO security_events (id, kind, severity, subject, details, task_id, run_id, once)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
    )
    .bind(event.id)
    .bind(event.kind.as_str())
    .bind(event.kind.severity().rank())
    .bind(event.subject())
    .bind(event.details())
    .bind(event.task)
    .bind(event.run)
    .bind(&event.once)
    .execute(connection)
    .await?;
    Ok(())
}

/// A stored event.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct SecurityEventRow {
    pub ordinal: i64,
    pub id: Uuid,
    pub kind: String,
    pub severity: i16,
    pub subject: String,
    pub details: Value,
    pub task_id: Option<Uuid>,
    pub run_id: Option<Uuid>,
    pub at: DateTime<Utc>,
}

impl SecurityEventRow {
    /// # Errors
    /// [`DbError::Inconsistent`] names the column.
    pub fn into_wire(self) -> Result<wire::security_event::SecurityEvent, DbError> {
        let wrong =
            |column, problem: String| DbError::inconsistent("security_events", column, self.ordinal, problem);
        let kind = self.kind.parse().map_err(|_| wrong("kind", "there is no such kind".to_owned()))?;
        let severity = Severity::of_rank(self.severity);
        Ok(wire::security_event::SecurityEvent {
            id: self.id,
            kind,
            severity: severity.ok_or_else(|| wrong("severity", "it is 1 to 4".to_owned()))?,
            subject: self.subject,
            details: self.details,
            task_id: self.task_id,
            run_id: self.run_id,
            at: self.at,
        })
    }
}

/// The latest first, before the one that `filter.cursor` names.
///
/// # Errors
/// [`DbError`].
pub async fn list(
    executor: impl PgExecutor<'_>,
    filter: &SecurityEventFilter,
    limit: i64,
) -> Result<Vec<SecurityEventRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT ordinal, id, kind, severity, subject, details, task_id, run_id, at FROM security_events
         WHERE ($1::text IS NULL OR kind = $1) AND ($2::smallint IS NULL OR severity >= $2)
           AND ($3::timestamptz IS NULL OR at >= $3) AND ($4::uuid IS NULL OR task_id = $4)
           AND ($5::bigint IS NULL OR ordinal < $5)
         ORDER BY ordinal DESC LIMIT $6",
    )
    .bind(filter.kind.map(|kind| kind.as_str()))
    .bind(filter.severity.map(Severity::rank))
    .bind(filter.since)
    .bind(filter.task)
    .bind(filter.cursor.map(|cursor| i64::try_from(cursor).unwrap_or(i64::MAX)))
    .bind(limit)
    .fetch_all(executor)
    .await?)
}
