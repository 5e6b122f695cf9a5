//! A database with a log in it.

use std::str::FromStr as _;

use kage::cli::audit_verify::{self, Found, Wrong};
use kage::config::database::DatabaseConfig;
use kage::db::{self, Zone};
use kage::domain::audit::{Actor, Entry, Outcome};
use kage::sequencer::batch::Sequencer;
use kage::sequencer::keep::Keys;
use kage::trail::checkpoint::{self, Checkpoint};
use kage::trail::error::TrailError;
use kage::trail::note::{Kind, SignerKey, VerifierKey};
use secrecy::{SecretBox, SecretString};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};

use crate::database::{Database, as_superuser};

pub const ORIGIN: &str = "kage.test/audit";

pub fn key(seed: u8) -> SignerKey {
    SignerKey::new(ORIGIN, Kind::Log, &SecretBox::new(Box::new([seed; 32]))).expect("a key")
}

pub fn public() -> Vec<VerifierKey> {
    vec![key(1).verifier()]
}

pub fn entry(number: u64, details: Value) -> Entry {
    let object = format!("task:{number}");
    Entry { actor: Actor::Host, action: "task.submit", object, outcome: Outcome::Done, details }
}

pub struct Trail {
    pub database: Option<Database>,
}

impl Trail {
    pub async fn new() -> Self {
        let this = Self::bare().await;
        db::migrate(this.pool()).await.expect("migrates");
        this
    }

    /// Without a schema.
    pub async fn bare() -> Self {
        let name = uuid::Uuid::new_v4().simple().to_string();
        Self { database: Some(Database::create(&name).await) }
    }

    fn database(&self) -> &Database {
        self.database.as_ref().expect("until it is dropped")
    }

    /// The owner's, who is a superuser.
    pub fn pool(&self) -> &PgPool {
        &self.database().pool
    }

    pub fn url(&self) -> &str {
        &self.database().url
    }

    pub async fn as_zone(&self, zone: Zone, connections: u32) -> PgPool {
        let url = Some(SecretString::from(self.url().to_owned()));
        let config = DatabaseConfig { url, password: None, connections, acquire_secs: 60, start_secs: 60 };
        db::connect(&config, zone).await.expect("a pool")
    }

    pub async fn log(&self, numbers: std::ops::Range<u64>) {
        let mut transaction = self.pool().begin().await.expect("begins");
        for number in numbers {
            let entry = entry(number, json!({ "n": number }));
            db::audit::append(&mut transaction, &entry).await.expect("appends");
        }
        transaction.commit().await.expect("commits");
    }

    pub async fn sequencer(&self, seed: u8, batch: u64, known: Vec<Checkpoint>) -> Sequencer {
        let pool = self.as_zone(Zone::Sequencer, 2).await;
        Sequencer::new(pool, Keys::new(key(seed), Vec::new()), batch, known)
    }

    /// Entries, each step a checkpoint.
    pub async fn grown(size: u64, batch: u64) -> Self {
        let this = Self::new().await;
        this.log(0..size).await;
        let mut sequencer = this.sequencer(1, batch, Vec::new()).await;
        while sequencer.step().await.expect("steps").is_some() {}
        sequencer.pool().close().await;
        this
    }

    /// As a superuser whom no trigger and no foreign key stops.
    pub async fn tamper(&self, statement: &str) {
        let mut connection = self.pool().acquire().await.expect("a connection");
        let all =
            format!("SET session_replication_role = replica; {statement}; RESET session_replication_role");
        sqlx::raw_sql(AssertSqlSafe(all)).execute(&mut *connection).await.expect(statement);
    }

    pub async fn verify(&self, known: Vec<Checkpoint>) -> Result<Found, Wrong> {
        let mut connection = self.pool().acquire().await.expect("a connection");
        audit_verify::database(&mut connection, &public(), known).await
    }

    /// Where the first fault is.
    pub async fn fault(&self, known: Vec<Checkpoint>) -> String {
        match self.verify(known).await {
            Err(Wrong::Trail(TrailError::Tampered { place, .. })) => place,
            other => panic!("{other:?}"),
        }
    }

    pub async fn checkpoint(&self, size: u64) -> Checkpoint {
        let mut connection = self.pool().acquire().await.expect("a connection");
        let note = db::trail::note(&mut connection, Some(size)).await.expect("reads").expect("is there");
        checkpoint::open_by_any(&note, &public()).expect("opens")
    }

    /// The same database again.
    pub async fn copy(&self) -> Self {
        let name = uuid::Uuid::new_v4().simple().to_string();
        let from = self.database();
        let name = format!("kage_{name}");
        // Nobody may be connected to what is copied; who was sent away takes a moment to go.
        let alone = format!(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{}'",
            from.name
        );
        as_superuser(alone).await.expect("sends them away");
        as_superuser(format!("CREATE DATABASE {name} TEMPLATE {}", from.name)).await.expect("a copy");
        let mut url = url::Url::parse(&from.url).expect("a URL");
        url.set_path(&name);
        let options = PgConnectOptions::from_str(url.as_str()).expect("a Postgres URL");
        let pool = PgPoolOptions::new().max_connections(4).connect_lazy_with(options);
        Self { database: Some(Database { name, url: url.into(), pool }) }
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        if let Some(database) = self.database.take() {
            database.destroy();
        }
    }
}
