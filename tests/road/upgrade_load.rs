//! The roles of a release at work: clients submit and read, a runner claims, writes and ends, a gateway books. Statements as the
//! first releases had them, prepared and kept as a role's are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use kage::config::database::DatabaseConfig;
use kage::db::error::DbError;
use kage::db::{self, Zone};
use serde_json::{Value, json};
use sqlx::{PgPool, Row as _};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::support::{TestKage, eventually};

/// As a role makes it.
pub async fn pool(kage: &TestKage, zone: Zone) -> PgPool {
    let url = Some(kage.settings["KAGE_DATABASE_URL"].clone().into());
    let config = DatabaseConfig { url, password: None, connections: 2, acquire_secs: 60, start_secs: 60 };
    db::connect(&config, zone).await.expect("a pool")
}

#[derive(Default)]
struct Counts {
    ending: AtomicBool,
    /// Of each worker.
    done: [AtomicU64; 4],
    transient: AtomicU64,
    longest_millis: AtomicU64,
}

type Step = for<'a> fn(&'a PgPool) -> BoxFuture<'a, Result<bool, DbError>>;

const STEPS: [(Zone, Step); 4] = [
    (Zone::Api, |pool| Box::pin(submit(pool))),
    (Zone::Runner, |pool| Box::pin(work(pool))),
    (Zone::Gateway, |pool| Box::pin(book(pool))),
    (Zone::Api, |pool| Box::pin(read(pool))),
];

pub struct Load {
    counts: Arc<Counts>,
    workers: Vec<JoinHandle<()>>,
}

impl Load {
    pub async fn start(kage: &TestKage) -> Self {
        let counts = Arc::new(Counts::default());
        let mut workers = Vec::new();
        for (index, (zone, step)) in STEPS.into_iter().enumerate() {
            let (pool, counts) = (pool(kage, zone).await, Arc::clone(&counts));
            workers.push(tokio::spawn(async move {
                while !counts.ending.load(Ordering::SeqCst) {
                    let begun = Instant::now();
                    match step(&pool).await {
                        Ok(true) => _ = counts.done[index].fetch_add(1, Ordering::SeqCst),
                        Ok(false) => {}
                        // As a role: it tries again.
                        Err(error) if error.is_transient() => {
                            _ = counts.transient.fetch_add(1, Ordering::SeqCst)
                        }
                        Err(error) => panic!("{zone:?}: {error}"),
                    }
                    let millis = u64::try_from(begun.elapsed().as_millis()).expect("fits");
                    counts.longest_millis.fetch_max(millis, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                pool.close().await;
            }));
        }
        Self { counts, workers }
    }

    /// Waits until each worker has got so much further.
    pub async fn commits(&self, more: u64) {
        let done = || self.counts.done.each_ref().map(|one| one.load(Ordering::SeqCst));
        let before = done();
        eventually("every role gets on", async || {
            assert!(self.workers.iter().all(|worker| !worker.is_finished()), "a role could not go on");
            done().iter().zip(before).all(|(now, before)| *now >= before + more).then_some(())
        })
        .await;
    }

    /// What it came to.
    pub async fn end(self) -> String {
        self.counts.ending.store(true, Ordering::SeqCst);
        for worker in self.workers {
            worker.await.expect("no role failed");
        }
        let counts = &self.counts;
        let done: u64 = counts.done.iter().map(|one| one.load(Ordering::SeqCst)).sum();
        let (transient, longest) = (&counts.transient, &counts.longest_millis);
        format!("{done} steps of roles, {transient:?} tried again, the longest took {longest:?} ms")
    }
}

fn state(task: Uuid, run: Uuid, state: &str) -> Value {
    json!({ "task_id": task, "run": "load", "run_id": run, "state": state, "attempt": 1, "timestamp": "2026-01-01T00:00:00Z" })
}

/// As `POST /api/v1/tasks`.
async fn submit(pool: &PgPool) -> Result<bool, DbError> {
    let (task, run) = (Uuid::now_v7(), Uuid::now_v7());
    let mut transaction = pool.begin().await?;
    sqlx::query("SELECT * FROM api_keys WHERE id = 'Released04' AND revoked_at IS NULL")
        .fetch_one(&mut *transaction)
        .await?;
    sqlx::query(
        "INSERT INTO tasks (id, description, repository, assignments, max_retries, retry_delay, merge_strategy, submitted_by)
         VALUES ($1, 'load', 'load', '[]', 0, 1, 'theirs', 'Released04')",
    )
    .bind(task)
    .execute(&mut *transaction)
    .await?;
    sqlx::query(
        "INSERT INTO runs (id, task_id, name, position, cli_name, image_digest, manifest, context, timeout_secs, allow_no_changes)
         VALUES ($1, $2, 'load', 0, 'load', '', '{}', '{}', 600, true)",
    )
    .bind(run)
    .bind(task)
    .execute(&mut *transaction)
    .await?;
    event(&mut transaction, task, run, "state", state(task, run, "queued")).await?;
    sqlx::query(
        "INSERT INTO audit_entries (actor_kind, actor_id, action, object, outcome, details)
         VALUES ('key', 'Released04', 'task.submit', $1, 'done', '{}')",
    )
    .bind(format!("task:{task}"))
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(true)
}

/// Takes the task's lock, which comes before the run's.
async fn event(
    connection: &mut sqlx::PgConnection,
    task: Uuid,
    run: Uuid,
    kind: &str,
    payload: Value,
) -> Result<(), DbError> {
    sqlx::query(
        "WITH next AS (UPDATE tasks SET event_seq = event_seq + 1, updated_at = now() WHERE id = $1 RETURNING event_seq)
         INSERT INTO events (task_id, run_id, seq, kind, payload) SELECT $1, $2, event_seq, $3, $4 FROM next",
    )
    .bind(task)
    .bind(run)
    .bind(kind)
    .bind(payload)
    .execute(connection)
    .await?;
    Ok(())
}

/// Claims one run, takes it through its states and ends it, each step a transaction behind the fence.
async fn work(pool: &PgPool) -> Result<bool, DbError> {
    let claimed = sqlx::query(
        "UPDATE runs SET lease_id = gen_random_uuid(), lease_expires_at = now() + interval '1 minute', state = 'running', attempt = 1
         WHERE id = (SELECT r.id FROM runs r JOIN tasks t ON t.id = r.task_id
                     WHERE r.state = 'queued' AND t.repository = 'load' ORDER BY r.created_at LIMIT 1 FOR UPDATE OF r SKIP LOCKED)
         RETURNING *",
    )
    .fetch_optional(pool)
    .await?;
    let Some(row) = claimed else { return Ok(false) };
    let run = Leased { id: row.get("id"), task: row.get("task_id"), lease: row.get("lease_id") };
    while let Err(error) = write(pool, run).await {
        again(error).await?;
    }
    while let Err(error) = end(pool, run).await {
        again(error).await?;
    }
    Ok(true)
}

#[derive(Clone, Copy)]
struct Leased {
    id: Uuid,
    task: Uuid,
    lease: Uuid,
}

/// As a runner does with what must not be lost.
async fn again(error: DbError) -> Result<(), DbError> {
    if !error.is_transient() {
        return Err(error);
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}

async fn write(pool: &PgPool, run: Leased) -> Result<(), DbError> {
    let mut transaction = pool.begin().await?;
    sqlx::query(
        "WITH next AS (UPDATE tasks SET event_seq = event_seq + 1 WHERE id = $1 RETURNING event_seq)
         INSERT INTO events (task_id, run_id, seq, kind, attempt, stream, log_offset, log_position, log)
         SELECT $1, $2, event_seq, 'log', 1, 1, 0, 0, 'output' FROM next",
    )
    .bind(run.task)
    .bind(run.id)
    .execute(&mut *transaction)
    .await?;
    fenced(&mut transaction, run).await?;
    sqlx::query("UPDATE runs SET stdout_offset = 6, output_bytes = 6 WHERE id = $1")
        .bind(run.id)
        .execute(&mut *transaction)
        .await?;
    Ok(transaction.commit().await?)
}

async fn end(pool: &PgPool, run: Leased) -> Result<(), DbError> {
    let mut transaction = pool.begin().await?;
    event(&mut transaction, run.task, run.id, "state", state(run.task, run.id, "succeeded")).await?;
    fenced(&mut transaction, run).await?;
    for statement in [
        "INSERT INTO run_results (run_id, patch, patch_truncated, files, warnings) VALUES ($1, '', false, '[]', '[]')
         ON CONFLICT (run_id) DO NOTHING",
        "UPDATE tasks SET status = 'completed', completed_at = now() WHERE id = (SELECT task_id FROM runs WHERE id = $1)",
        "INSERT INTO audit_entries (actor_kind, action, object, outcome, details)
         VALUES ('runner', 'run.state', 'run:' || $1::uuid, 'done', '{}')",
        "UPDATE runs SET state = 'succeeded', finished_at = now(), lease_expires_at = now() WHERE id = $1",
    ] {
        sqlx::query(statement).bind(run.id).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

async fn fenced(connection: &mut sqlx::PgConnection, run: Leased) -> Result<(), DbError> {
    let row =
        sqlx::query("SELECT * FROM runs WHERE id = $1 FOR UPDATE").bind(run.id).fetch_one(connection).await?;
    assert_eq!(row.get::<Uuid, _>("lease_id"), run.lease);
    Ok(())
}

/// A call that begins and ends.
async fn book(pool: &PgPool) -> Result<bool, DbError> {
    let call = Uuid::now_v7();
    let mut transaction = pool.begin().await?;
    sqlx::query(
        "INSERT INTO model_calls (id, run_id, task_id, attempt, provider, dialect, model_asked, model, reserved_micros,
                                  reserved_tokens, streamed)
         SELECT $1, id, task_id, 1, 'openai', 'openai-responses', 'gpt-5', 'gpt-5', 100, 100, true
         FROM runs WHERE id = '01900000-0000-7000-8000-000000000104'",
    )
    .bind(call)
    .execute(&mut *transaction)
    .await?;
    sqlx::query("UPDATE model_calls SET outcome = 'ok', status = 200, cost_micros = 90 WHERE id = $1")
        .bind(call)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(true)
}

/// As `GET` of a task and its events.
async fn read(pool: &PgPool) -> Result<bool, DbError> {
    let task = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);
    for table in
        ["tasks WHERE id", "runs WHERE task_id", "run_results WHERE run_id <>", "attempts WHERE run_id <>"]
    {
        let comparison = if table.ends_with("<>") { "" } else { " =" };
        let statement = sqlx::AssertSqlSafe(format!("SELECT * FROM {table}{comparison} $1 LIMIT 10"));
        assert!(!sqlx::query(statement).bind(task).fetch_all(pool).await?.is_empty(), "{table}");
    }
    let numbers: Vec<i64> =
        sqlx::query_scalar("SELECT seq FROM events WHERE task_id = $1 AND seq > 0 ORDER BY seq LIMIT 100")
            .bind(task)
            .fetch_all(pool)
            .await?;
    assert_eq!(numbers, (1..=10).collect::<Vec<i64>>());
    Ok(true)
}
