//! What runs have used of models, as clients see it: the grants and the calls together.

use std::collections::BTreeMap;

use sqlx::PgExecutor;
use uuid::Uuid;

use crate::db::error::DbError;
use crate::wire::run::ModelUse;

#[derive(sqlx::FromRow)]
struct UseRow {
    run_id: Uuid,
    provider: Option<String>,
    model: Option<String>,
    calls: i64,
    input: i64,
    output: i64,
    cached: i64,
    written: i64,
}

/// The use of those of these runs that were given a way to a model, over all their attempts.
///
/// # Errors
/// [`DbError`].
pub async fn of_runs(
    executor: impl PgExecutor<'_>,
    runs: &[Uuid],
) -> Result<BTreeMap<Uuid, ModelUse>, DbError> {
    let rows: Vec<UseRow> = sqlx::query_as(
        "SELECT g.run_id, g.provider, g.model, c.calls, c.input, c.output, c.cached, c.written
         FROM model_grants g CROSS JOIN LATERAL (
             SELECT count(*) FILTER (WHERE outcome <> 'refused') AS calls, coalesce(sum(input_tokens), 0)::bigint AS input,
                    coalesce(sum(output_tokens), 0)::bigint AS output,
                    coalesce(sum(cached_input_tokens), 0)::bigint AS cached,
                    coalesce(sum(cache_write_tokens), 0)::bigint AS written
             FROM model_calls WHERE run_id = g.run_id) c
         WHERE g.run_id = ANY($1)",
    )
    .bind(runs)
    .fetch_all(executor)
    .await?;
    let of_run = |row: UseRow| {
        let used = ModelUse {
            provider: row.provider,
            model: row.model,
            calls: row.calls.unsigned_abs(),
            input_tokens: row.input.unsigned_abs(),
            output_tokens: row.output.unsigned_abs(),
            cached_input_tokens: row.cached.unsigned_abs(),
            cache_write_tokens: row.written.unsigned_abs(),
        };
        (row.run_id, used)
    };
    Ok(rows.into_iter().map(of_run).collect())
}
