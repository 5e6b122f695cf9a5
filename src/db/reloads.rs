//! The record of secrets that were read again. What they are is not in it, nor anything made of it.

use serde_json::json;
use sqlx::PgPool;

use crate::db::audit;
use crate::db::error::DbError;
use crate::domain::audit::{Actor, Entry, Outcome};

/// A setting of these roles has another value now; or it could not be read again, for this reason.
///
/// # Errors
/// [`DbError`].
pub async fn record(
    pool: &PgPool,
    actor: Actor,
    roles: &str,
    setting: &str,
    problem: Option<&str>,
) -> Result<(), DbError> {
    let outcome = if problem.is_none() { Outcome::Done } else { Outcome::Failed };
    let details = json!({ "roles": roles, "problem": problem });
    let object = format!("setting:{setting}");
    let entry = Entry { actor, action: "secret.reload", object, outcome, details };
    let mut connection = pool.acquire().await?;
    audit::append(&mut connection, &entry).await
}
