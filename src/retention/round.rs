//! One look at everything: months to come are made, what came before its month was there goes into it, months that are over are
//! dropped whole where all of them is due, and the rest goes task by task.

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use crate::config::retention::{Kept, RetentionConfig};
use crate::db;
use crate::db::error::DbError;
use crate::db::retention::{Bounds, Due, Moved, Thing};
use crate::metrics::metrics;

/// Months that are there before they begin.
const AHEAD: i32 = 3;
/// Tasks of one transaction: each may have thousands of rows.
const BATCH: usize = 20;
/// Of an age of more days than this, what is due waits for its month.
const MONTH_DAYS: u32 = 31;
/// Parts of what came too early that are moved in one look: each holds up whoever reads or writes events.
const MOVES: usize = 20;

/// Whether there is more to do at once.
pub(super) async fn run(pool: &PgPool, config: &RetentionConfig) -> Result<bool, DbError> {
    make_months(pool).await?;
    let mut more = fill_months(pool).await?;
    for thing in Thing::ALL {
        let kept = match thing {
            Thing::Log => config.log,
            Thing::Events => config.events,
            Thing::Results => config.results,
        };
        if !kept.for_ever() {
            more |= let_go(pool, thing, bounds(kept, Utc::now())).await?;
        }
    }
    metrics().retention.looked();
    Ok(more)
}

/// What comes before they are there is kept all the same, in a table that can never be dropped.
async fn make_months(pool: &PgPool) -> Result<(), DbError> {
    match db::retention::make_months(pool, AHEAD).await {
        Ok(0) => Ok(()),
        Ok(made) => {
            tracing::info!(made, "retention.months_made");
            Ok(())
        }
        Err(error) if error.is_lock_timeout() => {
            tracing::warn!("retention.months_later: the tables are in use");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Whether there is more to move at once.
async fn fill_months(pool: &PgPool) -> Result<bool, DbError> {
    let mut more = false;
    for thing in Thing::BY_MONTH {
        let mut moves = 0;
        while moves < MOVES {
            match db::retention::move_rest(pool, thing).await {
                Ok(None) => break,
                Ok(Some(Moved { month, tasks, rows })) => {
                    tracing::info!(what = thing.as_str(), %month, tasks, rows, "retention.moved_into_month");
                    moves += 1;
                }
                Err(error) if error.is_lock_timeout() => {
                    tracing::warn!(what = thing.as_str(), "retention.move_later: the tables are in use");
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        more |= moves == MOVES;
    }
    Ok(more)
}

fn bounds(kept: Kept, now: DateTime<Utc>) -> Bounds {
    Bounds {
        before: kept.days.and_then(|days| now.checked_sub_signed(TimeDelta::days(i64::from(days)))),
        most_bytes: kept.bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        whole_months: kept.days.is_none_or(|days| days >= MONTH_DAYS),
    }
}

async fn let_go(pool: &PgPool, thing: Thing, bounds: Bounds) -> Result<bool, DbError> {
    let mut due = db::retention::due(pool, thing, bounds).await?;
    let more = due.len() >= db::retention::MOST_DUE;
    for month in db::retention::past_months(pool, thing).await? {
        let of_month: Vec<Uuid> =
            due.iter().filter(|due| due.month == Some(month)).map(|due| due.task).collect();
        match db::retention::drop_month(pool, thing, month, bounds.before, &of_month).await {
            Ok(None) => {}
            Ok(Some(gone)) => {
                tracing::info!(what = thing.as_str(), %month, gone.tasks, gone.bytes, "retention.month_dropped");
                metrics().retention.let_go(thing.as_str(), gone.tasks, gone.bytes);
                due.retain(|due| due.month != Some(month));
            }
            // Its tasks stay, and not row by row: the next round tries again.
            Err(error) if error.is_lock_timeout() => {
                tracing::warn!(what = thing.as_str(), %month, "retention.month_later: the table is in use");
                due.retain(|due| due.month != Some(month));
            }
            Err(error) => return Err(error),
        }
    }
    for rule in ["age", "size"] {
        task_by_task(pool, thing, &due, rule).await?;
    }
    Ok(more)
}

async fn task_by_task(pool: &PgPool, thing: Thing, due: &[Due], rule: &str) -> Result<(), DbError> {
    let ids: Vec<Uuid> = due.iter().filter(|due| due.rule == rule).map(|due| due.task).collect();
    for batch in ids.chunks(BATCH) {
        let gone = db::retention::let_go(pool, thing, batch, rule).await?;
        tracing::info!(what = thing.as_str(), rule, gone.tasks, gone.bytes, "retention.let_go");
        metrics().retention.let_go(thing.as_str(), gone.tasks, gone.bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_bounds_nothing() {
        let now = Utc::now();
        let none = bounds(Kept::default(), now);
        assert_eq!((none.before, none.most_bytes), (None, None));
        let week = bounds(Kept { days: Some(7), bytes: None }, now);
        assert_eq!((week.before, week.whole_months), (Some(now - TimeDelta::days(7)), false));
        let year = bounds(Kept { days: Some(365), bytes: Some(u64::MAX) }, now);
        assert_eq!((year.most_bytes, year.whole_months), (Some(i64::MAX), true));
    }
}
