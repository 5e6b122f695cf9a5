//! A database for one test, on the cluster that `DATABASE_URL` names.

use std::str::FromStr;
use std::thread;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

pub struct Database {
    pub name: String,
    pub url: String,
    pub pool: PgPool,
}

/// The superuser's URL.
fn cluster() -> String {
    std::env::var("DATABASE_URL")
        .expect("DATABASE_URL is not set: ./test sets it, or scripts/cluster start FOLDER")
}

pub async fn as_superuser(statement: String) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(&cluster()).await?;
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await?;
    connection.close().await
}

/// Runs a statement as a role; the SQLSTATE where it is refused.
pub async fn as_role(pool: &PgPool, role: Option<&str>, statement: &str) -> Option<String> {
    let mut transaction = pool.begin().await.expect("a connection");
    if let Some(role) = role {
        let set = AssertSqlSafe(format!("SET LOCAL ROLE {role}"));
        sqlx::query(set).execute(&mut *transaction).await.expect("the role is there");
    }
    let done = sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut *transaction).await;
    transaction.rollback().await.expect("rolls back");
    match done {
        Ok(_) => None,
        Err(sqlx::Error::Database(error)) => Some(error.code().expect("a SQLSTATE").into_owned()),
        Err(error) => panic!("{statement}: {error}"),
    }
}

impl Database {
    pub async fn create(name: &str) -> Self {
        let name = format!("kage_{name}");
        as_superuser(format!("CREATE DATABASE {name}")).await.expect("a database");
        let mut url = url::Url::parse(&cluster()).expect("DATABASE_URL is a URL");
        url.set_path(&name);
        let options = PgConnectOptions::from_str(url.as_str()).expect("a Postgres URL");
        let pool = PgPoolOptions::new().max_connections(4).connect_lazy_with(options);
        Self { name, url: url.into(), pool }
    }

    /// Drops it, whoever is still connected; what was left over in it.
    pub fn destroy(self) -> Vec<String> {
        // A runtime of its own: this is called while a test's unwinds.
        let ended = thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut connection = {
                    let mut url = url::Url::parse(&cluster()).expect("a URL");
                    url.set_path(&self.name);
                    PgConnection::connect(url.as_str()).await.expect("a connection")
                };
                let leases: Vec<String> = sqlx::query_scalar(
                    "SELECT 'a lease on ended run ' || id::text FROM runs
                     WHERE finished_at IS NOT NULL AND lease_id IS NOT NULL AND lease_expires_at > now()",
                )
                .fetch_all(&mut connection)
                .await
                .unwrap_or_default();
                drop(connection);
                as_superuser(format!("DROP DATABASE {} WITH (FORCE)", self.name)).await.expect("drops");
                leases
            })
        });
        ended.join().unwrap_or_else(|_| vec!["the database".to_owned()])
    }
}

/// Every row of every table as text, bytes as they are: what must not be stored is looked for in it.
pub async fn stored(pool: &PgPool) -> String {
    let mut transaction = pool.begin().await.expect("a transaction");
    sqlx::query("SET LOCAL bytea_output = 'escape'").execute(&mut *transaction).await.expect("set");
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")
            .fetch_all(&mut *transaction)
            .await
            .expect("tables");
    let mut all = String::new();
    for table in tables {
        let statement = AssertSqlSafe(format!("SELECT t::text FROM {table} t"));
        let rows: Vec<String> =
            sqlx::query_scalar(statement).fetch_all(&mut *transaction).await.expect("rows");
        all += &format!("-- {table}\n{}\n", rows.join("\n"));
    }
    all
}
