//! The queue and the lease. A claim takes the lease and nothing else.

use std::collections::BTreeMap;

use sqlx::PgPool;
use uuid::Uuid;

use crate::db::error::DbError;
use crate::db::runs::RunRow;
use crate::domain::run::RunState;
use crate::domain::verdict::Verdict;

/// The right to write one run's rows, as long as nobody else claims it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    pub task: Uuid,
    pub run: Uuid,
    pub id: Uuid,
    pub runner: Uuid,
}

/// Serialises claims of runs that count against keys, so that two runners never exceed a key's runs at once.
const CHARGED_LOCK: i64 = 0x6b61_6765_0002;
/// Most runs that are looked at in one round of such claims.
const CHARGED_WINDOW: i64 = 1000;

/// Takes up to `limit` queued runs, oldest first, but for those that this runner is not done with (`held`). Runs whose
/// keys have as many at work as they may stay in the queue.
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
    let charged: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM runs WHERE state = 'queued' AND charged <> '{}')")
            .fetch_one(pool)
            .await?;
    if charged {
        return claim_charged(pool, runner, ttl_secs, limit, held).await;
    }
    Ok(sqlx::query_as(
        "WITH next AS (
             SELECT id FROM runs
             WHERE state = 'queued' AND charged = '{}' AND not_before <= now()
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

/// As [`claim_queued`], where runs that count against keys are among those that wait. One runner at a time: what is at
/// work is counted and added to in one transaction.
async fn claim_charged(
    pool: &PgPool,
    runner: Uuid,
    ttl_secs: i32,
    limit: i64,
    held: &[Uuid],
) -> Result<Vec<RunRow>, DbError> {
    let mut transaction = pool.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(CHARGED_LOCK).execute(&mut *transaction).await?;
    let mut room: BTreeMap<String, i64> = sqlx::query_as::<_, (String, i64)>(
        "SELECT k.id, k.runs_at_once - (
             SELECT count(*) FROM runs r WHERE r.charged @> ARRAY[k.id] AND r.charged <> '{}' AND r.finished_at IS NULL
                AND (r.state <> 'queued' OR r.lease_expires_at >= now()))
         FROM api_keys k
         WHERE k.runs_at_once IS NOT NULL
           AND k.id IN (SELECT unnest(charged) FROM runs WHERE state = 'queued' AND charged <> '{}')",
    )
    .fetch_all(&mut *transaction)
    .await?
    .into_iter()
    .collect();
    let full: Vec<&str> = room.iter().filter(|(_, room)| **room <= 0).map(|(key, _)| key.as_str()).collect();
    let waiting: Vec<(Uuid, Vec<String>)> = sqlx::query_as(
        "SELECT id, charged FROM runs
         WHERE state = 'queued' AND not_before <= now() AND NOT charged && $2
           AND (lease_expires_at IS NULL OR lease_expires_at < now()) AND id <> ALL($1)
         ORDER BY not_before, created_at, position LIMIT $3",
    )
    .bind(held)
    .bind(full)
    .bind(CHARGED_WINDOW)
    .fetch_all(&mut *transaction)
    .await?;
    let chosen = within_room(waiting, &mut room, usize::try_from(limit).unwrap_or(0));
    let claimed = sqlx::query_as(
        "WITH next AS (
             SELECT id FROM runs
             WHERE id = ANY($3) AND state = 'queued' AND (lease_expires_at IS NULL OR lease_expires_at < now())
             FOR UPDATE SKIP LOCKED)
         UPDATE runs SET lease_id = gen_random_uuid(), runner_id = $1,
                         lease_expires_at = now() + make_interval(secs => $2)
         FROM next WHERE runs.id = next.id RETURNING runs.*",
    )
    .bind(runner)
    .bind(f64::from(ttl_secs))
    .bind(chosen)
    .fetch_all(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(claimed)
}

/// The first runs for which each of their keys has room.
fn within_room(
    waiting: Vec<(Uuid, Vec<String>)>,
    room: &mut BTreeMap<String, i64>,
    limit: usize,
) -> Vec<Uuid> {
    let mut chosen = Vec::new();
    for (run, keys) in waiting {
        if chosen.len() == limit {
            break;
        }
        if keys.iter().any(|key| room.get(key).is_some_and(|left| *left <= 0)) {
            continue;
        }
        for key in &keys {
            if let Some(left) = room.get_mut(key) {
                *left -= 1;
            }
        }
        chosen.push(run);
    }
    chosen
}

/// Takes runs whose runner let the lease expire. With `own_too`, also all that this very runner held
/// before it was started anew (it holds the lock on its data folder, so its former self is dead). Never those
/// that it works on (`held`), whose leases expired while the database was away: they are renewed. The former holder is given beside each.
///
/// An attempt that goes from one runner to another is lost in the same moment, and says so in its row: whoever dies next, nobody takes
/// it for an attempt of his own that has not begun.
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
    let lost = Verdict::new(RunState::Lost, "its runner disappeared, and its files with it");
    let lost = serde_json::to_value(lost).expect("plain struct");
    let mut claimed = Vec::new();
    for run in abandoned {
        let taken: RunRow = sqlx::query_as(
            "UPDATE runs SET lease_id = gen_random_uuid(), runner_id = $2,
                             lease_expires_at = now() + make_interval(secs => $3),
                             verdict = CASE WHEN state <> 'queued' AND runner_id IS DISTINCT FROM $2 THEN $4 ELSE verdict END
             WHERE id = $1 RETURNING *",
        )
        .bind(run.id)
        .bind(runner)
        .bind(f64::from(ttl_secs))
        .bind(&lost)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_key_holds_back_its_own_runs_alone() {
        let of = |number: u128, keys: &[&str]| {
            (Uuid::from_u128(number), keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>())
        };
        let mut room = BTreeMap::from([("parent".to_owned(), 2), ("child".to_owned(), 1)]);
        let waiting = vec![
            of(1, &["child", "parent"]),
            of(2, &["child", "parent"]),
            of(3, &[]),
            of(4, &["parent"]),
            of(5, &["parent"]),
            of(6, &["unlimited"]),
        ];
        let chosen = |limit| {
            let mut room = room.clone();
            within_room(waiting.clone(), &mut room, limit).iter().map(|id| id.as_u128()).collect::<Vec<_>>()
        };
        assert_eq!(chosen(10), [1, 3, 4, 6]);
        assert_eq!(chosen(2), [1, 3]);
        room.insert("parent".to_owned(), 0);
        let mut none = room.clone();
        let ids: Vec<u128> = within_room(waiting, &mut none, 10).iter().map(|id| id.as_u128()).collect();
        assert_eq!(ids, [3, 6]);
    }
}
