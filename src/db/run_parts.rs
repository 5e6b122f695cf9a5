//! What clients see of runs beside their rows, gathered from the other tables.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use uuid::Uuid;

use crate::db::error::DbError;
use crate::db::runs::RunParts;
use crate::db::{containment, model_use, refused_calls, sandboxes};

/// # Errors
/// [`DbError`].
pub(super) async fn of_runs(
    connection: &mut PgConnection,
    runs: &[Uuid],
) -> Result<BTreeMap<Uuid, RunParts>, DbError> {
    let mut parts: BTreeMap<Uuid, RunParts> = BTreeMap::new();
    for (run, usage) in model_use::of_runs(&mut *connection, runs).await? {
        parts.entry(run).or_default().usage = Some(usage);
    }
    for (run, found) in containment::of_runs(&mut *connection, runs).await? {
        parts.entry(run).or_default().containment = Some(found);
    }
    for (run, sandbox) in sandboxes::of_runs(&mut *connection, runs).await? {
        parts.entry(run).or_default().sandbox = Some(sandbox);
    }
    let mut refused = refused_calls::of_runs(&mut *connection, runs).await?;
    for (run, recorded) in refused_calls::recorded_of_runs(connection, runs).await? {
        let part = parts.entry(run).or_default();
        part.refused_calls = recorded.calls(refused.remove(&run));
        part.refused_calls_recorded = Some(recorded.text);
    }
    Ok(parts)
}
