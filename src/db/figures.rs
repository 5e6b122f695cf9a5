//! What is asked for the figures of `metrics`: of all tenants together, numbers alone.

use sqlx::PgPool;

use crate::db::Zone;
use crate::db::error::DbError;
use crate::domain::run::RunState;
use crate::metrics::metrics;
use crate::metrics::runs::Queue;
use crate::metrics::trail::Stand;

const OPEN: [RunState; 4] = [RunState::Queued, RunState::Preparing, RunState::Running, RunState::Harvesting];

/// The queue, and how many runs are in each state that is not an end. Asked with the API's rights.
///
/// # Errors
/// [`DbError`].
pub async fn runs(pool: &PgPool) -> Result<(), DbError> {
    let (length, oldest_secs, runners): (i64, f64, i64) = sqlx::query_as(
        "SELECT count(*), coalesce(extract(epoch FROM now() - min(not_before)), 0)::float8,
                (SELECT count(*) FROM runners WHERE seen_at > now() - interval '30 seconds' AND NOT draining)
         FROM runs WHERE state = 'queued' AND not_before <= now()",
    )
    .fetch_one(pool)
    .await?;
    let counted: Vec<(String, i64)> = sqlx::query_as(
        "SELECT state, count(*) FROM runs WHERE state = 'queued' GROUP BY state
         UNION ALL
         SELECT state, count(*) FROM runs WHERE state IN ('preparing', 'running', 'harvesting') GROUP BY state",
    )
    .fetch_all(pool)
    .await?;
    let of = |state: RunState| {
        counted.iter().find(|(name, _)| name == state.as_str()).map_or(0, |(_, count)| *count)
    };
    let open = OPEN.map(|state| (state.as_str(), of(state)));
    metrics().runs.stand(Queue { length, oldest_secs, runners }, &open);
    Ok(())
}

/// How far the trail is behind. Asked with the sequencer's rights.
///
/// # Errors
/// [`DbError`].
pub async fn trail(pool: &PgPool) -> Result<(), DbError> {
    let (unsequenced, oldest_secs, entries, checkpoint_at): (i64, f64, i64, f64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM audit_queue),
                coalesce((SELECT extract(epoch FROM greatest(now() - e.at, interval '0'))
                          FROM audit_queue q JOIN audit_entries e ON e.id = q.entry_id
                          ORDER BY q.ordinal LIMIT 1), 0)::float8,
                (SELECT coalesce(max(index) + 1, 0) FROM audit_leaves),
                coalesce((SELECT extract(epoch FROM at) FROM audit_checkpoints ORDER BY size DESC LIMIT 1), 0)::float8",
    )
    .fetch_one(pool)
    .await?;
    metrics().trail.stands(Stand { unsequenced, oldest_secs, entries, checkpoint_at });
    Ok(())
}

/// A pool's connections. Asks nobody.
pub fn pool(zone: Zone, pool: &PgPool) {
    let most = pool.options().get_max_connections();
    metrics().database.pool(zone.name(), pool.size(), pool.num_idle(), most);
}
