//! A database of a test's own, in the cluster that `DATABASE_URL` names.

use kage::config::database::DatabaseConfig;
use kage::db;
use kage::db::Zone;
use kage::db::events::EventRow;
use kage::db::keys::Bearer;
use kage::db::queue::{Claim, Lease};
use kage::db::runs::RunRow;
use kage::db::tasks::{NewRun, NewTask};
use kage::db::visible::Visible;
use kage::domain::task::MergeStrategy;
use kage::wire::task::Assignment;
use serde_json::json;
use sqlx::{Connection, PgConnection, PgPool};
use uuid::Uuid;

pub struct TestDatabase {
    name: String,
    cluster: url::Url,
    pub runner: PgPool,
    pub api: PgPool,
    pub owner: PgPool,
}

impl TestDatabase {
    pub async fn new() -> Self {
        let cluster = std::env::var("DATABASE_URL")
            .expect("DATABASE_URL: a superuser's URL (scripts/cluster start prints one)");
        let cluster: url::Url = cluster.parse().expect("a URL");
        let name = format!("faults_{}", Uuid::new_v4().simple());
        let mut superuser = PgConnection::connect(cluster.as_str()).await.expect("the cluster answers");
        let statement = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::raw_sql(statement).execute(&mut superuser).await.expect("creates");
        let mut url = cluster.clone();
        url.set_path(&name);
        let config = DatabaseConfig {
            url: Some(url.as_str().into()),
            password: None,
            connections: 16,
            acquire_secs: 60,
            start_secs: 60,
        };
        let pool = async |zone| db::connect(&config, zone).await.expect("connects");
        let this = Self {
            name,
            cluster,
            runner: pool(Zone::Runner).await,
            api: pool(Zone::Api).await,
            owner: pool(Zone::Owner).await,
        };
        db::migrate(&this.owner).await.expect("migrates");
        sqlx::query("INSERT INTO api_keys (id, name, secret_sha256) VALUES ($1, 'test', $2)")
            .bind(this.bearer().key_id)
            .bind(&this.bearer().secret_sha256[..])
            .execute(&this.owner)
            .await
            .expect("a key");
        this
    }

    /// Of a superuser.
    pub fn url(&self) -> String {
        let mut url = self.cluster.clone();
        url.set_path(&self.name);
        url.into()
    }

    /// A runner's pool that is had by another road.
    pub async fn pool_through(&self, url: &str, connections: u32) -> PgPool {
        let config = DatabaseConfig {
            url: Some(url.into()),
            password: None,
            connections,
            acquire_secs: 60,
            start_secs: 60,
        };
        db::connect(&config, Zone::Runner).await.expect("connects")
    }

    /// Who reads events.
    pub fn bearer(&self) -> Bearer {
        Bearer { key_id: "key".to_owned(), secret_sha256: [7; 32] }
    }

    /// The next events after a cursor, as a client that sees everything reads them.
    pub async fn events_after(&self, task: Uuid, cursor: i64, limit: i64) -> Vec<EventRow> {
        let rows =
            db::events::after(&self.api, &Visible::EVERYTHING, &self.bearer(), task, cursor, None, limit)
                .await;
        rows.expect("reads")
    }

    /// A task with so many runs, all queued.
    pub async fn task(&self, runs: usize) -> Uuid {
        self.task_of("repository", runs).await
    }

    /// As [`TestDatabase::task`], of another repository.
    pub async fn task_of(&self, repository: &str, runs: usize) -> Uuid {
        let assignment = Assignment {
            runtime: None,
            cli_name: "shell".to_owned(),
            context: serde_json::Map::new(),
            timeout: 600,
            idle_timeout: None,
            allow_no_changes: false,
            model: None,
            budget: None,
        };
        let request = kage::wire::task::NewTask {
            description: "echo a fault".to_owned(),
            repository: None,
            base_revision: None,
            cli_assignments: vec![assignment.clone(); runs],
            max_retries: 0,
            retry_delay: 1,
            merge_strategy: MergeStrategy::default(),
            budget: None,
            created_by: None,
        };
        let run = |number: usize| NewRun {
            id: Uuid::now_v7(),
            name: format!("shell-{number}"),
            assignment: &assignment,
            image_digest: format!("sha256:{}", "0".repeat(64)),
            manifest: json!({}),
        };
        let task = NewTask {
            id: Uuid::now_v7(),
            request: &request,
            repository,
            base_commit: None,
            submitted_by: "key",
            charged: &[],
            traceparent: None,
            runs: (0..runs).map(run).collect(),
        };
        let mut transaction = self.api.begin().await.expect("begins");
        db::tasks::insert(&mut transaction, &task).await.expect("inserts");
        transaction.commit().await.expect("commits");
        task.id
    }

    /// Claims the one run that waits, and begins its attempt.
    pub async fn begun(&self, runner: Uuid) -> (Lease, RunRow) {
        let run =
            db::queue::claim_queued(&self.runner, &claim(runner, 1, &[])).await.expect("claims").remove(0);
        let lease = lease_of(&run, runner);
        let begun = db::attempts::begin_attempt(&self.runner, lease, &run).await.expect("begins");
        (lease, begun.expect("is not cancelled"))
    }

    /// Lets every lease run out.
    pub async fn expire(&self) {
        let statement = "UPDATE runs SET lease_expires_at = now() - interval '1 second'";
        sqlx::query(statement).execute(&self.owner).await.expect("updates");
    }

    /// All that anybody could have written about runs, as text.
    pub async fn everything(&self) -> String {
        let mut all = String::new();
        for table in ["tasks", "runs", "attempts", "events", "run_results", "audit_entries"] {
            let statement = sqlx::AssertSqlSafe(format!("SELECT t::text FROM {table} t ORDER BY 1"));
            let rows: Vec<String> =
                sqlx::query_scalar(statement).fetch_all(&self.owner).await.expect("selects");
            all.push_str(&format!("{table}\n{}\n", rows.join("\n")));
        }
        all
    }

    pub async fn remove(self) {
        for pool in [&self.runner, &self.api, &self.owner] {
            pool.close().await;
        }
        let mut superuser = PgConnection::connect(self.cluster.as_str()).await.expect("the cluster answers");
        let statement = sqlx::AssertSqlSafe(format!("DROP DATABASE {} WITH (FORCE)", self.name));
        sqlx::raw_sql(statement).execute(&mut superuser).await.expect("drops");
    }
}

pub fn lease_of(run: &RunRow, runner: Uuid) -> Lease {
    Lease { task: run.task_id, run: run.id, id: run.lease_id.expect("is leased"), runner }
}

/// So many runs, whatever repositories they are of.
pub fn claim(runner: Uuid, limit: i64, held: &[Uuid]) -> Claim<'_> {
    Claim { runner, ttl_secs: 60, limit, held, of_repository: None }
}
