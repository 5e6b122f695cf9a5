//! Limits of what waits, when a task is submitted: without them a queue grows until the database is full.

use sqlx::PgConnection;

use crate::api::auth::Caller;
use crate::api::problem::ApiError;
use crate::api::tasks::submit::Refusal;
use crate::config::api::ApiConfig;
use crate::db;
use crate::metrics::http::Limit;
use crate::metrics::metrics;

/// Refuses where there is no room for so many runs more. Until the transaction ends nobody else takes what there is.
pub(super) async fn check(
    connection: &mut PgConnection,
    config: &ApiConfig,
    caller: &Caller,
    runs: usize,
) -> Result<(), Refusal> {
    let more = i64::try_from(runs).unwrap_or(i64::MAX);
    let most = config.queue_runs_key;
    let own = db::queue_length::of_submitter(connection, &caller.key_id, most).await?;
    if own.saturating_add(more) > most {
        metrics().http.limited(Limit::QueueOfKey);
        let who = if caller.signed_in.is_some() { "you" } else { "this API key" };
        let detail = format!("{most} runs of {who} may wait at once, {own} do, and these are {more} more");
        return Err(ApiError::queue_of_key_full(detail).into());
    }
    let most = config.queue_runs;
    let all = db::queue_length::in_all(connection, most).await?;
    if all.saturating_add(more) > most {
        metrics().http.limited(Limit::Queue);
        tracing::warn!(waiting = all, most, "api.queue_full");
        return Err(ApiError::queue_full("as many runs wait as may; come back when some have begun").into());
    }
    Ok(())
}
