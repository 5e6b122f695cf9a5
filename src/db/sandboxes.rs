//! What held runs, as clients see it: from the records of their attempts.

use std::collections::BTreeMap;

use serde_json::Value;
use sqlx::PgExecutor;
use uuid::Uuid;

use crate::db::error::DbError;
use crate::domain::limits::Enforcement;
use crate::wire::run::{HeldLimit, SandboxRecord};

#[derive(sqlx::FromRow)]
struct Row {
    run_id: Uuid,
    number: i32,
    sandbox: Value,
    worktree: Option<String>,
}

/// The last sandbox of those of these runs that had one.
///
/// # Errors
/// [`DbError`].
pub async fn of_runs(
    executor: impl PgExecutor<'_>,
    runs: &[Uuid],
) -> Result<BTreeMap<Uuid, SandboxRecord>, DbError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT DISTINCT ON (run_id) run_id, number, sandbox, worktree FROM attempts
         WHERE run_id = ANY($1) AND sandbox IS NOT NULL ORDER BY run_id, number DESC",
    )
    .bind(runs)
    .fetch_all(executor)
    .await?;
    Ok(rows.into_iter().map(|row| (row.run_id, record(&row))).collect())
}

fn record(row: &Row) -> SandboxRecord {
    SandboxRecord {
        attempt: row.number.unsigned_abs(),
        runtime: row.sandbox["runtime"].as_str().map(str::to_owned),
        worktree: row.worktree.clone(),
        limits: limits(&row.sandbox["limits"], &row.sandbox["held"]),
        notes: serde_json::from_value(row.sandbox["notes"].clone()).unwrap_or_default(),
    }
}

/// Records from before limits were told apart do not say how they were held, and neither do we.
fn limits(limits: &Value, held: &Value) -> BTreeMap<String, HeldLimit> {
    let one = |(name, value): (&String, &Value)| {
        let held: Enforcement = serde_json::from_value(held[name].clone()).ok()?;
        Some((name.clone(), HeldLimit { value: value.as_u64()?, held }))
    };
    limits.as_object().into_iter().flatten().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_limit_is_told_with_how_it_was_held_or_not_at_all() {
        let values = json!({ "pids": 512, "worktree_bytes": 4096, "old": 1 });
        let held = json!({ "pids": "hard", "worktree_bytes": "soft" });
        let told = limits(&values, &held);
        assert_eq!(told.keys().collect::<Vec<_>>(), ["pids", "worktree_bytes"]);
        assert_eq!(told["worktree_bytes"], HeldLimit { value: 4096, held: Enforcement::Soft });
        assert!(limits(&Value::Null, &Value::Null).is_empty());
    }
}
