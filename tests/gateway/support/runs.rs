//! Runs as the API and the runner write them, and what they read of the gateway's work.

use std::time::Duration;

use kage::db;
use kage::db::budgets::{BudgetRow, Limits};
use kage::db::grants::{GrantRow, Wish};
use serde_json::Value;
use uuid::Uuid;

use super::{World, eventually};

pub struct Run {
    pub task: Uuid,
    pub id: Uuid,
}

/// One row of `model_calls`.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Call {
    pub provider: String,
    pub model_asked: String,
    pub model: String,
    pub status: Option<i32>,
    pub outcome: String,
    pub reserved_micros: i64,
    pub input_tokens: i64,
    pub output_tokens: i64,
    pub cost_micros: i64,
    pub estimated: bool,
    pub streamed: bool,
    pub price_note: Option<String>,
    pub first_byte_ms: Option<i32>,
    pub duration_ms: Option<i32>,
}

impl World {
    /// A task without runs.
    pub async fn task(&self, limits: Limits) -> Uuid {
        let task = Uuid::now_v7();
        sqlx::query(
            "INSERT INTO tasks (id, description, repository, assignments, max_retries, retry_delay, merge_strategy, submitted_by)
             VALUES ($1, 'a secret plan', 'demo', '[]', 0, 1, 'auto', 'key')",
        )
        .bind(task)
        .execute(self.pool())
        .await
        .expect("a task");
        let mut connection = self.pool().acquire().await.expect("a connection");
        db::budgets::create(&mut connection, task, None, limits).await.expect("a budget");
        task
    }

    /// A run that a runner works on, with the folder for its socket.
    pub async fn run_of(&self, task: Uuid, limits: Limits) -> Run {
        let id = Uuid::now_v7();
        sqlx::query(
            "INSERT INTO runs (id, task_id, name, position, cli_name, image_digest, manifest, context, timeout_secs,
                               allow_no_changes, state, attempt, lease_id, lease_expires_at)
             VALUES ($1, $2, $3, 0, 'cli', 'sha256:0', '{}', '[]', 60, false, 'preparing', 1, gen_random_uuid(),
                     now() + interval '1 hour')",
        )
        .bind(id)
        .bind(task)
        .bind(id.to_string())
        .execute(self.pool())
        .await
        .expect("a run");
        let mut connection = self.pool().acquire().await.expect("a connection");
        db::budgets::create(&mut connection, task, Some(id), limits).await.expect("a budget");
        std::fs::create_dir(self.folder().join("model").join(id.to_string())).expect("a folder");
        Run { task, id }
    }

    /// Asks for a socket, as a runner does.
    pub async fn want(&self, run: &Run, cli: &str, dialect: &str, model: Option<&str>) {
        let mut connection = self.pool().acquire().await.expect("a connection");
        let attempt: i32 = sqlx::query_scalar("SELECT attempt FROM runs WHERE id = $1")
            .bind(run.id)
            .fetch_one(&mut *connection)
            .await
            .expect("the run");
        let wish = Wish {
            run: run.id,
            task: run.task,
            attempt,
            cli_name: cli,
            dialect,
            model_asked: model,
            model_default: "m-default",
            traceparent: None,
        };
        db::grants::want(&mut connection, &wish).await.expect("a grant");
        db::notify::send(self.pool(), db::notify::GRANTS, &run.id.to_string()).await.expect("told");
    }

    pub async fn answered(&self, run: &Run) -> GrantRow {
        let grant = db::grants::wait_row(self.pool(), run.id, Duration::from_secs(30)).await;
        grant.expect("the database answers").expect("the gateway answers")
    }

    /// A run with an open socket.
    pub async fn open(&self, dialect: &str, task: Limits, run: Limits) -> Run {
        let task = self.task(task).await;
        self.open_in(task, dialect, run).await
    }

    pub async fn open_in(&self, task: Uuid, dialect: &str, limits: Limits) -> Run {
        let run = self.run_of(task, limits).await;
        self.want(&run, "cli", dialect, None).await;
        let grant = self.answered(&run).await;
        assert!(grant.is_open(), "{grant:?}");
        run
    }

    /// Ends a run's grant, as a runner does, and waits for the gateway.
    pub async fn close(&self, run: &Run) -> GrantRow {
        let mut connection = self.pool().acquire().await.expect("a connection");
        db::grants::close(&mut connection, run.id).await.expect("closes");
        db::notify::send(self.pool(), db::notify::GRANTS, &run.id.to_string()).await.expect("told");
        eventually("the grant is closed", async || {
            db::grants::find(self.pool(), run.id).await.expect("a row").filter(GrantRow::is_closed)
        })
        .await
    }

    /// A run's calls, oldest first, once none of them is open.
    pub async fn calls(&self, run: &Run) -> Vec<Call> {
        eventually("all calls are settled", async || {
            let calls: Vec<Call> =
                sqlx::query_as("SELECT * FROM model_calls WHERE run_id = $1 ORDER BY started_at")
                    .bind(run.id)
                    .fetch_all(self.pool())
                    .await
                    .expect("rows");
            calls.iter().all(|call| call.outcome != "open").then_some(calls)
        })
        .await
    }

    /// The task's budget and the run's.
    pub async fn budgets(&self, run: &Run) -> (BudgetRow, BudgetRow) {
        let mut rows = db::budgets::of_task(self.pool(), run.task).await.expect("rows");
        rows.retain(|row| row.run_id.is_none_or(|id| id == run.id));
        let [task, run] = <[BudgetRow; 2]>::try_from(rows).expect("two levels");
        (task, run)
    }

    /// The messages of a run's warnings, oldest first.
    pub async fn warnings(&self, run: &Run) -> Vec<String> {
        sqlx::query_scalar(
            "SELECT payload ->> 'message' FROM events WHERE run_id = $1 AND kind = 'warning' ORDER BY seq",
        )
        .bind(run.id)
        .fetch_all(self.pool())
        .await
        .expect("rows")
    }

    /// Waits for a warning that holds these words.
    pub async fn warned(&self, run: &Run, words: &str) -> String {
        eventually(&format!("a warning with {words:?}"), async || {
            self.warnings(run).await.into_iter().find(|warning| warning.contains(words))
        })
        .await
    }

    /// A run's audit entries of one action: outcome and details, oldest first.
    pub async fn audit(&self, run: &Run, action: &str) -> Vec<(String, Value)> {
        sqlx::query_as(
            "SELECT outcome, details FROM audit_entries WHERE object = $1 AND action = $2 AND actor_kind = 'gateway'
             ORDER BY at",
        )
        .bind(format!("run:{}", run.id))
        .bind(action)
        .fetch_all(self.pool())
        .await
        .expect("rows")
    }
}

pub const fn micros(micros: i64) -> Limits {
    Limits { micros: Some(micros), tokens: None }
}

pub const fn tokens(tokens: i64) -> Limits {
    Limits { micros: None, tokens: Some(tokens) }
}

pub const NONE: Limits = Limits { micros: None, tokens: None };
