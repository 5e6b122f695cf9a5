//! The queue and the lease. A claim takes the lease and nothing else.

use sqlx::PgPool;
use uuid::Uuid;

use crate::db::error::DbError;
use crate::db::runs::RunRow;

/// The right to write one run's rows, as long as nobody else claims it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub task: Uuid,
    pub run: Uuid,
    pub id: Uuid,
    pub runner: Uuid,
}

/// Takes up to `limit` queued runs, oldest first, but for those that this runner is not done with (`held`).
///
/// # Errors
/// [`DbError`].
pub async fn claim_queued(
    pool: &PgPool,
    runner: Uuid,
    ttl_secs: i32,
    limit: i64,
    held: &[Uuid],
) -> Result<Vec<RunRow>, DbError> {
    Ok(sqlx::query_as(
        "WITH next AS (
             SELECT id FROM runs
             WHERE state = 'queued' AND not_before <= now()
               AND (lease_expires_at IS NULL OR lease_expires_at < now()) AND id <> ALL($4)
             ORDER BY not_before, created_at, position
             LIMIT $3 FOR UPDATE SKIP LOCKED)
         UPDATE runs SET lease_id = gen_random_uuid(), runner_id = $1,
                         lease_expires_at = now() + make_interval(secs => $2)
         FROM next WHERE runs.id = next.id RETURNING runs.*",
    )
    .bind(runner)
    .bind(f64::from(ttl_secs))
    .bind(limit)
    .bind(held)
    .fetch_all(pool)
    .await?)
}

/// Takes runs whose runner let the lease expire. With `own_too`, also all that this very runner held
/// before it was started anew (it holds the lock on its data folder, so its former self is dead). Never those
/// that it works on (`held`), whose leases expired while the database was away: they are renewed. The former holder is given beside each.
///
/// # Errors
/// [`DbError`].
pub async fn claim_abandoned(
    pool: &PgPool,
    runner: Uuid,
    ttl_secs: i32,
    own_too: bool,
    held: &[Uuid],
) -> Result<Vec<(Option<Uuid>, RunRow)>, DbError> {
    let mut transaction = pool.begin().await?;
    let abandoned: Vec<RunRow> = sqlx::query_as(
        "SELECT * FROM runs
         WHERE ((state IN ('preparing', 'running', 'harvesting')
                 AND (lease_expires_at IS NULL OR lease_expires_at < now() OR ($2 AND runner_id = $1)))
                OR (state = 'queued' AND $2 AND runner_id = $1 AND lease_id IS NOT NULL))
           AND id <> ALL($3)
         FOR UPDATE SKIP LOCKED",
    )
    .bind(runner)
    .bind(own_too)
    .bind(held)
    .fetch_all(&mut *transaction)
    .await?;
    let mut claimed = Vec::new();
    for run in abandoned {
        let taken: RunRow = sqlx::query_as(
            "UPDATE runs SET lease_id = gen_random_uuid(), runner_id = $2,
                             lease_expires_at = now() + make_interval(secs => $3)
             WHERE id = $1 RETURNING *",
        )
        .bind(run.id)
        .bind(runner)
        .bind(f64::from(ttl_secs))
        .fetch_one(&mut *transaction)
        .await?;
        claimed.push((run.runner_id, taken));
    }
    transaction.commit().await?;
    Ok(claimed)
}

/// What is wanted of a run whose lease was prolonged.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Renewed {
    pub id: Uuid,
    /// Its task is to be cancelled.
    pub cancel: bool,
    /// Why the gateway serves this attempt no longer.
    pub stop_reason: Option<String>,
}

/// Prolongs leases. A run that is missing from the answer is no longer ours.
///
/// # Errors
/// [`DbError`].
pub async fn renew(pool: &PgPool, leases: &[Lease], ttl_secs: i32) -> Result<Vec<Renewed>, DbError> {
    let (runs, ids): (Vec<Uuid>, Vec<Uuid>) = leases.iter().map(|lease| (lease.run, lease.id)).unzip();
    Ok(sqlx::query_as(
        "UPDATE runs r SET lease_expires_at = now() + make_interval(secs => $3)
         FROM unnest($1::uuid[], $2::uuid[]) AS held (run, lease)
              LEFT JOIN model_grants g ON g.run_id = held.run, tasks t
         WHERE r.id = held.run AND r.lease_id = held.lease AND r.finished_at IS NULL AND t.id = r.task_id
         RETURNING r.id, t.cancel_requested_at IS NOT NULL AS cancel,
                   CASE WHEN g.attempt = r.attempt THEN g.stop_reason END AS stop_reason",
    )
    .bind(runs)
    .bind(ids)
    .bind(f64::from(ttl_secs))
    .fetch_all(pool)
    .await?)
}
