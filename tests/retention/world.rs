//! A database without servers.

use kage::config::database::DatabaseConfig;
use kage::db::{self, Zone};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::support::database::Database;

/// A migrated database of one test; dropped with it.
pub struct World(Option<Database>);

impl World {
    pub async fn new() -> Self {
        let database = Database::create(&Uuid::new_v4().simple().to_string()).await;
        db::migrate(&database.pool).await.expect("migrates");
        Self(Some(database))
    }

    /// As a role of ours has it.
    pub async fn as_zone(&self, zone: Zone) -> PgPool {
        let url = self.0.as_ref().map(|database| SecretString::from(database.url.clone()));
        let config = DatabaseConfig { url, password: None, connections: 2, acquire_secs: 60, start_secs: 60 };
        db::connect(&config, zone).await.expect("a pool")
    }

    pub fn pool(&self) -> &PgPool {
        &self.0.as_ref().expect("until it is dropped").pool
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.0.take().map(Database::destroy));
    }
}

/// A task of one run, with a block of output of ten bytes and two other events. `ended`: when, in SQL; without, it goes on.
pub async fn task(pool: &PgPool, id: Uuid, ended: Option<&str>) {
    let statement = AssertSqlSafe(format!(
        "WITH task AS (
             INSERT INTO tasks (id, description, repository, assignments, max_retries, retry_delay, merge_strategy,
                                submitted_by, event_seq, completed_at)
             VALUES ($1, 'd', 'r', '[]', 0, 1, 'auto', 'k', 3, {}) RETURNING id),
         run AS (
             INSERT INTO runs (id, task_id, name, position, cli_name, image_digest, manifest, context, timeout_secs,
                               allow_no_changes, state, output_bytes)
             SELECT gen_random_uuid(), id, 'shell', 0, 'shell', 'd', '{{}}', '{{}}', 60, false, 'succeeded', 10 FROM task)
         INSERT INTO events (task_id, seq, kind, payload, attempt, stream, log_offset, log_position, log)
         SELECT id, seq, CASE seq WHEN 2 THEN 'log' ELSE 'state' END, CASE seq WHEN 2 THEN NULL ELSE '{{}}'::jsonb END,
                1, 1, 0, 0, CASE seq WHEN 2 THEN '0123456789'::bytea END
         FROM task, generate_series(1, 3) AS seq",
        ended.unwrap_or("NULL")
    ));
    sqlx::query(statement).bind(id).execute(pool).await.expect("inserts");
}
