//! Databases as released versions left them: `tests/fixtures/released` has the rows of each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};

use crate::support::TestKage;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/released")
}

/// The last migrations of the released schemas, oldest first.
pub fn released() -> Vec<i64> {
    let files = std::fs::read_dir(folder()).expect("fixtures").flatten();
    let number = |name: &str| name.strip_suffix(".sql")?.parse().ok();
    let numbers = files.filter_map(|file| number(file.file_name().to_str()?));
    numbers.collect::<BTreeSet<i64>>().into_iter().collect()
}

/// The newest migration that there is.
pub async fn newest() -> i64 {
    migrator().await.iter().map(|one| one.version).max().expect("migrations")
}

async fn migrator() -> Migrator {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    Migrator::new(folder).await.expect("migrations")
}

/// As `kage migrate` of the release whose last migration this is.
pub async fn migrate_to(kage: &TestKage, version: i64) {
    migrator().await.run_to(version, kage.pool()).await.expect("migrates");
}

/// The rows that a release had written by its end.
pub async fn load(kage: &TestKage, version: i64) {
    let rows = std::fs::read_to_string(folder().join(format!("{version:04}.sql"))).expect("a fixture");
    let mut connection = PgConnection::connect(&kage.settings["KAGE_DATABASE_URL"]).await.expect("connects");
    let mut transaction = connection.begin().await.expect("begins");
    sqlx::raw_sql(AssertSqlSafe(rows)).execute(&mut *transaction).await.expect("the fixture fits its schema");
    transaction.commit().await.expect("commits");
}

/// Every row of every table, by table.
pub async fn rows(pool: &PgPool) -> BTreeMap<String, Vec<Value>> {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT c.relname::text FROM pg_class c
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
           AND c.relname <> '_sqlx_migrations'",
    )
    .fetch_all(pool)
    .await
    .expect("tables");
    let mut all = BTreeMap::new();
    for table in tables {
        let statement = AssertSqlSafe(format!("SELECT to_jsonb(t) FROM {table} t"));
        all.insert(table, sqlx::query_scalar(statement).fetch_all(pool).await.expect("rows"));
    }
    all
}

/// Rows of `before` that are not in `after`, each with what it had; further columns may have come.
pub fn lost(before: &BTreeMap<String, Vec<Value>>, after: &BTreeMap<String, Vec<Value>>) -> Vec<String> {
    let mut lost = Vec::new();
    for (table, rows) in before {
        let Some(columns) = rows.first().and_then(Value::as_object).map(|row| row.keys().collect::<Vec<_>>())
        else {
            continue;
        };
        let form =
            |row: &Value| columns.iter().map(|name| row[name.as_str()].to_string()).collect::<Vec<_>>();
        let kept: BTreeSet<Vec<String>> = after.get(table).into_iter().flatten().map(form).collect();
        lost.extend(
            rows.iter().filter(|row| !kept.contains(&form(row))).map(|row| format!("{table}: {row}")),
        );
    }
    lost
}
