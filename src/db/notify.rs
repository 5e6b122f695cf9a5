//! NOTIFY to wake, never to carry: whoever hears it looks into the tables.

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use uuid::Uuid;

use crate::db::error::DbError;

/// A run waits in the queue, or a repository for its fetch.
pub const QUEUE: &str = "kage_queue";
/// New events; the payload is the task's id.
pub const EVENTS: &str = "kage_events";
/// A client asked to cancel, or the gateway ends a run; the payload is the task's id.
pub const CANCEL: &str = "kage_cancel";

/// A key was rotated or revoked; the payload is its id.
pub const KEYS: &str = "kage_keys";
/// A model grant is wanted, answered or to be closed; the payload is the run's id.
pub const GRANTS: &str = "kage_grants";

/// A connection that hears one channel.
///
/// # Errors
/// [`DbError`].
pub async fn listen(pool: &PgPool, channel: &str) -> Result<PgListener, DbError> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(channel).await?;
    Ok(listener)
}

/// Sent after the commit, not inside it: within a write it costs a factor of 2.4 to 4.8.
/// Should it get lost, the listeners' slow poll finds the rows all the same.
///
/// # Errors
/// [`DbError`].
pub async fn send(pool: &PgPool, channel: &str, payload: &str) -> Result<(), DbError> {
    sqlx::query("SELECT pg_notify($1, $2)").bind(channel).bind(payload).execute(pool).await?;
    Ok(())
}

/// One statement for many tasks.
///
/// # Errors
/// [`DbError`].
pub async fn send_events(pool: &PgPool, tasks: &[Uuid]) -> Result<(), DbError> {
    let ids: Vec<String> = tasks.iter().map(Uuid::to_string).collect();
    sqlx::query("SELECT pg_notify($1, id) FROM unnest($2::text[]) AS id")
        .bind(EVENTS)
        .bind(ids)
        .execute(pool)
        .await?;
    Ok(())
}
