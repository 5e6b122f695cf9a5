//! The queue and the lease. A claim takes the lease and nothing else.

use std::collections::BTreeMap;

use sqlx::{PgConnection, PgPool};
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

/// Serialises claims of runs that count against keys or repositories, so that two runners never exceed what is allowed at
/// once.
const COUNTED_LOCK: i64 = 0x6b61_6765_0002;
/// Most runs that are looked at in one round of such claims.
const COUNTED_WINDOW: i64 = 1000;

/// What a runner wants of the queue.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    pub runner: Uuid,
    pub ttl_secs: i32,
    /// Most runs.
    pub limit: i64,
    /// Runs that this runner is not done with.
    pub held: &'a [Uuid],
    /// Runs at once of one repository, over all runners; `None`: as many as there are.
    pub of_repository: Option<u32>,
}

/// Takes queued runs, oldest first. Runs whose keys or repository have as many at work as they may stay in the queue.
///
/// # Errors
/// [`DbError`].
pub async fn claim_queued(pool: &PgPool, claim: &Claim<'_>) -> Result<Vec<RunRow>, DbError> {
    let counted = claim.of_repository.is_some()
        || sqlx::query_scalar("SELECT EXISTS (SELECT FROM runs WHERE state = 'queued' AND charged <> '{}')")
            .fetch_one(pool)
            .await?;
    if counted {
        return claim_counted(pool, claim).await;
    }
    let Claim { runner, ttl_secs, limit, held, .. } = *claim;
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

/// As [`claim_queued`], where it matters what is at work. One runner at a time: that is counted and added to in one
/// transaction.
async fn claim_counted(pool: &PgPool, claim: &Claim<'_>) -> Result<Vec<RunRow>, DbError> {
    let Claim { runner, ttl_secs, limit, held, of_repository } = *claim;
    let mut transaction = pool.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(COUNTED_LOCK).execute(&mut *transaction).await?;
    let mut room = Room {
        keys: room_of_keys(&mut transaction).await?,
        repositories: match of_repository {
            Some(_) => at_work(&mut transaction).await?,
            None => BTreeMap::new(),
        },
        of_repository: of_repository.map(i64::from),
    };
    let waiting: Vec<Waiting> = sqlx::query_as(
        "SELECT r.id, r.charged, t.repository FROM runs r JOIN tasks t ON t.id = r.task_id
         WHERE r.state = 'queued' AND r.not_before <= now() AND NOT r.charged && $2 AND t.repository <> ALL($3)
           AND (r.lease_expires_at IS NULL OR r.lease_expires_at < now()) AND r.id <> ALL($1)
         ORDER BY r.not_before, r.created_at, r.position LIMIT $4",
    )
    .bind(held)
    .bind(room.full_keys())
    .bind(room.full_repositories())
    .bind(COUNTED_WINDOW)
    .fetch_all(&mut *transaction)
    .await?;
    let chosen = room.choose(waiting, usize::try_from(limit).unwrap_or(0));
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

/// How many more may work of each key whose runs wait and that has such a quota.
async fn room_of_keys(connection: &mut PgConnection) -> Result<BTreeMap<String, i64>, DbError> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "SELECT k.id, k.runs_at_once - (
             SELECT count(*) FROM runs r WHERE r.charged @> ARRAY[k.id] AND r.charged <> '{}' AND r.finished_at IS NULL
                AND (r.state <> 'queued' OR r.lease_expires_at >= now()))
         FROM api_keys k
         WHERE k.runs_at_once IS NOT NULL
           AND k.id IN (SELECT unnest(charged) FROM runs WHERE state = 'queued' AND charged <> '{}')",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}

/// How many runs of each repository are at work, or claimed to be.
async fn at_work(connection: &mut PgConnection) -> Result<BTreeMap<String, i64>, DbError> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "SELECT t.repository, count(*) FROM (
             SELECT task_id FROM runs WHERE state IN ('preparing', 'running', 'harvesting')
             UNION ALL
             SELECT task_id FROM runs WHERE state = 'queued' AND lease_expires_at >= now()) r
         JOIN tasks t ON t.id = r.task_id GROUP BY t.repository",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}

#[derive(Debug, Clone, sqlx::FromRow)]
struct Waiting {
    id: Uuid,
    charged: Vec<String>,
    repository: String,
}

/// For how many more runs there is room.
#[derive(Debug, Clone)]
struct Room {
    /// Left of each key that has a quota.
    keys: BTreeMap<String, i64>,
    /// At work of each repository.
    repositories: BTreeMap<String, i64>,
    of_repository: Option<i64>,
}

impl Room {
    fn full_keys(&self) -> Vec<String> {
        self.keys.iter().filter(|(_, left)| **left <= 0).map(|(key, _)| key.clone()).collect()
    }

    fn full_repositories(&self) -> Vec<String> {
        let full = self.repositories.keys().filter(|name| self.is_full(name));
        full.cloned().collect()
    }

    fn is_full(&self, repository: &str) -> bool {
        let at_work = self.repositories.get(repository).copied().unwrap_or(0);
        self.of_repository.is_some_and(|most| at_work >= most)
    }

    /// The first runs for which their repository and each of their keys have room.
    fn choose(&mut self, waiting: Vec<Waiting>, limit: usize) -> Vec<Uuid> {
        let mut chosen = Vec::new();
        for Waiting { id, charged, repository } in waiting {
            if chosen.len() == limit {
                break;
            }
            let is_key_full = charged.iter().any(|key| self.keys.get(key).is_some_and(|left| *left <= 0));
            if is_key_full || self.is_full(&repository) {
                continue;
            }
            for key in &charged {
                if let Some(left) = self.keys.get_mut(key) {
                    *left -= 1;
                }
            }
            *self.repositories.entry(repository).or_default() += 1;
            chosen.push(id);
        }
        chosen
    }
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

    fn waiting(number: u128, keys: &[&str], repository: &str) -> Waiting {
        let charged = keys.iter().map(|key| (*key).to_owned()).collect();
        Waiting { id: Uuid::from_u128(number), charged, repository: repository.to_owned() }
    }

    fn chosen(room: &Room, waiting: &[Waiting], limit: usize) -> Vec<u128> {
        room.clone().choose(waiting.to_vec(), limit).iter().map(|id| id.as_u128()).collect()
    }

    #[test]
    fn a_full_key_holds_back_its_own_runs_alone() {
        let keys = BTreeMap::from([("parent".to_owned(), 2), ("child".to_owned(), 1)]);
        let mut room = Room { keys, repositories: BTreeMap::new(), of_repository: None };
        let queue = [
            waiting(1, &["child", "parent"], "r"),
            waiting(2, &["child", "parent"], "r"),
            waiting(3, &[], "r"),
            waiting(4, &["parent"], "r"),
            waiting(5, &["parent"], "r"),
            waiting(6, &["unlimited"], "r"),
        ];
        assert_eq!(chosen(&room, &queue, 10), [1, 3, 4, 6]);
        assert_eq!(chosen(&room, &queue, 2), [1, 3]);
        room.keys.insert("parent".to_owned(), 0);
        assert_eq!(room.full_keys(), ["parent"]);
        assert_eq!(chosen(&room, &queue, 10), [3, 6]);
    }

    #[test]
    fn a_full_repository_holds_back_its_own_runs_alone() {
        let at_work = BTreeMap::from([("full".to_owned(), 2), ("half".to_owned(), 1)]);
        let keys = BTreeMap::from([("key".to_owned(), 1)]);
        let room = Room { keys, repositories: at_work, of_repository: Some(2) };
        assert_eq!(room.full_repositories(), ["full"]);
        let queue = [
            waiting(1, &[], "full"),
            // What its repository holds back takes no room of its key.
            waiting(2, &["key"], "full"),
            waiting(3, &["key"], "half"),
            waiting(4, &[], "half"),
            waiting(5, &[], "idle"),
            waiting(6, &[], "idle"),
            waiting(7, &[], "idle"),
        ];
        assert_eq!(chosen(&room, &queue, 10), [3, 5, 6]);
        let unlimited = Room { of_repository: None, ..room };
        assert_eq!(chosen(&unlimited, &queue, 10), [1, 2, 4, 5, 6, 7]);
    }
}
