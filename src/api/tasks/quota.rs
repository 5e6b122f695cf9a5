//! Quotas of a key's day, when a task is submitted. Those of runs at once are held when runs are claimed.

use sqlx::PgConnection;

use crate::api::auth::Caller;
use crate::api::problem::ApiError;
use crate::api::tasks::submit::Refusal;
use crate::db;
use crate::db::quotas::DayRow;

/// Counts a task's runs; refuses where a key that they count against has no more of its day. The caller's transaction
/// is then given up, and the count with it.
pub(super) async fn count(
    connection: &mut PgConnection,
    caller: &Caller,
    runs: usize,
) -> Result<(), Refusal> {
    let days = db::quotas::count_runs(connection, &caller.charged, runs).await?;
    let Some(why) = days.iter().find_map(used_up) else { return Ok(()) };
    let (end, now) = db::quotas::day_ends(connection).await?;
    let secs = u64::try_from((end - now).num_seconds()).unwrap_or(0) + 1;
    Err(ApiError::quota(format!("{why}; the next day begins at {}", end.format("%FT%TZ")), secs).into())
}

fn used_up(day: &DayRow) -> Option<String> {
    let key = &day.key_id;
    let who = if key.starts_with("p_") { "person" } else { "API key" };
    if let Some(limit) = day.runs_a_day
        && day.runs > i64::from(limit)
    {
        return Some(format!(
            "{who} {key} may submit {limit} runs a day (UTC), with these it would be {}",
            day.runs
        ));
    }
    let used = day.spent_micros.saturating_add(day.reserved_micros);
    let limit = day.micros_a_day.filter(|limit| used >= *limit)?;
    let usd = |micros: i64| micros as f64 / 1e6;
    Some(format!("{who} {key} may spend {:.4} USD a day (UTC) and has spent {:.4}", usd(limit), usd(used)))
}
