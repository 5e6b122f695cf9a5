//! System calls that sandboxes refused: what the runner counted, and what is told of it.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{PgExecutor, PgPool};
use uuid::Uuid;

use crate::db::attempts::fenced;
use crate::db::audit;
use crate::db::error::DbError;
use crate::db::events::NewEvent;
use crate::db::queue::Lease;
use crate::db::runs::RunRow;
use crate::db::security_events;
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::domain::event::EventKind;
use crate::domain::security_event::{BURST, SecurityEvent, SecurityEventKind};
use crate::wire;

const INTERRUPTED: &str = "interrupted: ";
/// What the form of a kind begins with whose answers are held back.
const FLOOD: &str = "a flood:";
const NOT_RECORDED: &str = "not recorded";

/// One kind of call that was refused in an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedKind {
    pub call: String,
    /// Empty where the name says it all.
    pub form: String,
    /// Of the first such call, in hexadecimal.
    pub arguments: Vec<String>,
    /// Ordinary programs try it: no event, no audit entry.
    pub expected: bool,
    /// In this attempt so far.
    pub count: i64,
    pub first_at: DateTime<Utc>,
    pub last_at: DateTime<Utc>,
}

/// Stores an attempt's counts as they stand. A kind that was not there before is an event and an audit entry, in the
/// same transaction; so this is safe to repeat.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn record(pool: &PgPool, lease: Lease, run: &RunRow, kinds: &[RefusedKind]) -> Result<(), DbError> {
    // Only the lease's holder writes these.
    let known: Vec<(String, String)> =
        sqlx::query_as("SELECT call, form FROM refused_calls WHERE run_id = $1 AND attempt = $2")
            .bind(run.id)
            .bind(run.attempt)
            .fetch_all(pool)
            .await?;
    let known: HashSet<(String, String)> = known.into_iter().collect();
    let is_new =
        |kind: &&RefusedKind| !kind.expected && !known.contains(&(kind.call.clone(), kind.form.clone()));
    let new: Vec<&RefusedKind> = kinds.iter().filter(is_new).collect();
    let events: Vec<NewEvent> = new.iter().map(|kind| event(run, kind)).collect();
    let mut write = fenced(pool, lease, &events).await?;
    store(&mut *write.transaction, run, kinds).await?;
    for kind in new {
        let details = json!({ "task": lease.task, "attempt": run.attempt, "call": kind.call, "form": kind.form,
                              "arguments": kind.arguments, "count": kind.count });
        let entry = Entry {
            actor: Actor::Runner(lease.runner.to_string()),
            action: "sandbox.refuse",
            object: format!("run:{}", run.id),
            outcome: Outcome::Refused,
            details,
        };
        audit::append(&mut write.transaction, &entry).await?;
    }
    for event in alarms(lease, run, kinds) {
        security_events::append(&mut write.transaction, &event).await?;
    }
    write.transaction.commit().await?;
    Ok(())
}

/// What of it somebody should hear of: each once an attempt.
fn alarms(lease: Lease, run: &RunRow, kinds: &[RefusedKind]) -> Vec<SecurityEvent> {
    let flood = |kind: &&RefusedKind| kind.form.starts_with(FLOOD);
    let unusual: Vec<&RefusedKind> = kinds.iter().filter(|kind| !kind.expected && !flood(kind)).collect();
    let total: i64 = unusual.iter().map(|kind| kind.count).fold(0, i64::saturating_add);
    let alarm = |kind, details| {
        SecurityEvent::new(kind, &format!("run:{}", run.id), &details)
            .of_run(lease.task, run.id)
            .once(format!("{}:{}", run.id, run.attempt))
    };
    let mut alarms = Vec::new();
    if total >= BURST {
        let calls: Vec<_> = unusual
            .iter()
            .map(|kind| json!({ "call": kind.call, "form": kind.form, "count": kind.count }))
            .take(8)
            .collect();
        let details = json!({ "run": run.name, "attempt": run.attempt, "count": total, "kinds": unusual.len(), "calls": calls });
        alarms.push(alarm(SecurityEventKind::RefusedBurst, details));
    }
    if let Some(kind) = kinds.iter().find(flood) {
        let details =
            json!({ "run": run.name, "attempt": run.attempt, "call": kind.call, "count": kind.count });
        alarms.push(alarm(SecurityEventKind::Flood, details));
    }
    alarms
}

async fn store(executor: impl PgExecutor<'_>, run: &RunRow, kinds: &[RefusedKind]) -> Result<(), DbError> {
    let column = |of: fn(&RefusedKind) -> String| kinds.iter().map(of).collect::<Vec<_>>();
    sqlx::query(
        "INSERT INTO refused_calls (run_id, attempt, call, form, expected, count, first_at, last_at)
         SELECT $1, $2, * FROM unnest($3::text[], $4::text[], $5::boolean[], $6::bigint[], $7::timestamptz[], $8::timestamptz[])
         ON CONFLICT (run_id, attempt, call, form)
         DO UPDATE SET count = excluded.count, last_at = excluded.last_at",
    )
    .bind(run.id)
    .bind(run.attempt)
    .bind(column(|kind| kind.call.clone()))
    .bind(column(|kind| kind.form.clone()))
    .bind(kinds.iter().map(|kind| kind.expected).collect::<Vec<_>>())
    .bind(kinds.iter().map(|kind| kind.count).collect::<Vec<_>>())
    .bind(kinds.iter().map(|kind| kind.first_at).collect::<Vec<_>>())
    .bind(kinds.iter().map(|kind| kind.last_at).collect::<Vec<_>>())
    .execute(executor)
    .await?;
    Ok(())
}

/// From here on nobody counts: said in the attempt's record and the audit trail, and by a `warning`. Safe to repeat.
///
/// # Errors
/// [`DbError::LeaseLost`].
pub async fn interrupted(pool: &PgPool, lease: Lease, run: &RunRow, why: &str) -> Result<(), DbError> {
    let notice = wire::event::Notice {
        task_id: lease.task,
        run: Some(run.name.clone()),
        message: why.to_owned(),
        timestamp: Utc::now(),
    };
    let mut write = fenced(pool, lease, &[NewEvent::other(EventKind::Warning, &notice)]).await?;
    sqlx::query(
        "UPDATE attempts SET sandbox = jsonb_set(sandbox, '{refused_calls}', to_jsonb($3::text))
         WHERE run_id = $1 AND number = $2",
    )
    .bind(run.id)
    .bind(run.attempt)
    .bind(format!("{INTERRUPTED}{why}"))
    .execute(&mut *write.transaction)
    .await?;
    let entry = Entry {
        actor: Actor::Runner(lease.runner.to_string()),
        action: "sandbox.refusals_interrupted",
        object: format!("run:{}", run.id),
        outcome: Outcome::Failed,
        details: json!({ "task": lease.task, "attempt": run.attempt, "why": why }),
    };
    audit::append(&mut write.transaction, &entry).await?;
    let details = json!({ "run": run.name, "attempt": run.attempt, "why": why });
    let event =
        SecurityEvent::new(SecurityEventKind::RefusalsInterrupted, &format!("run:{}", run.id), &details)
            .of_run(lease.task, run.id)
            .once(format!("{}:{}", run.id, run.attempt));
    security_events::append(&mut write.transaction, &event).await?;
    write.transaction.commit().await?;
    Ok(())
}

fn event(run: &RunRow, kind: &RefusedKind) -> NewEvent {
    let times = if kind.count == 1 { String::new() } else { format!(", {} times so far", kind.count) };
    let message = match kind.form.strip_prefix("to ") {
        Some(address) => {
            format!("a program wants to reach {address} ({}){times}; there is no way", kind.call)
        }
        None if kind.form.starts_with(FLOOD) => {
            format!("so many calls of {} that answers to them are held back{times}", kind.call)
        }
        None if kind.form.is_empty() => format!("the sandbox refused the system call {}{times}", kind.call),
        None => format!("the sandbox refused the system call {} ({}){times}", kind.call, kind.form),
    };
    let security = wire::event::Security {
        task_id: run.task_id,
        run: run.name.clone(),
        run_id: run.id,
        attempt: run.attempt.unsigned_abs(),
        call: kind.call.clone(),
        form: kind.form.clone(),
        arguments: kind.arguments.clone(),
        count: kind.count.unsigned_abs(),
        message,
        timestamp: kind.first_at,
    };
    NewEvent::other(EventKind::Security, &security)
}

#[derive(sqlx::FromRow)]
struct Row {
    run_id: Uuid,
    attempt: i32,
    call: String,
    form: String,
    expected: bool,
    count: i64,
    first_at: DateTime<Utc>,
    last_at: DateTime<Utc>,
}

/// What was refused to those of these runs that were refused anything, over all their attempts.
///
/// # Errors
/// [`DbError`].
pub async fn of_runs(
    executor: impl PgExecutor<'_>,
    runs: &[Uuid],
) -> Result<BTreeMap<Uuid, Vec<wire::run::RefusedCall>>, DbError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT run_id, attempt, call, form, expected, count, first_at, last_at FROM refused_calls
         WHERE run_id = ANY($1) ORDER BY run_id, attempt, call, form",
    )
    .bind(runs)
    .fetch_all(executor)
    .await?;
    let mut by_run: BTreeMap<Uuid, Vec<wire::run::RefusedCall>> = BTreeMap::new();
    for row in rows {
        by_run.entry(row.run_id).or_default().push(wire::run::RefusedCall {
            attempt: row.attempt.unsigned_abs(),
            call: row.call,
            form: row.form,
            count: row.count.unsigned_abs(),
            expected: row.expected,
            first_at: row.first_at,
            last_at: row.last_at,
        });
    }
    Ok(by_run)
}

/// Whether refused calls of a run are recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// `recorded`, `not recorded: …` or `interrupted: …`.
    pub text: String,
}

impl Recorded {
    /// Of a run's attempts the word that says least: the counts are over all of them.
    fn of_attempts(words: &[(i32, String)]) -> Option<Self> {
        let bad = |beginning: &str| words.iter().find(|(_, word)| word.starts_with(beginning));
        let (number, word) = bad(INTERRUPTED).or_else(|| bad(NOT_RECORDED)).or(words.last())?;
        let text = match word.split_once(": ") {
            Some((kind, why)) if words.len() > 1 => format!("{kind}: attempt {number}: {why}"),
            _ => word.clone(),
        };
        Some(Self { text })
    }

    /// What was refused, if that is known: nothing known is not the same as nothing refused.
    pub fn calls(&self, found: Option<Vec<wire::run::RefusedCall>>) -> Option<Vec<wire::run::RefusedCall>> {
        match found {
            None if self.text.starts_with(NOT_RECORDED) => None,
            found => Some(found.unwrap_or_default()),
        }
    }
}

/// Of those of these runs that had a sandbox.
///
/// # Errors
/// [`DbError`].
pub async fn recorded_of_runs(
    executor: impl PgExecutor<'_>,
    runs: &[Uuid],
) -> Result<BTreeMap<Uuid, Recorded>, DbError> {
    let rows: Vec<(Uuid, i32, String)> = sqlx::query_as(
        "SELECT run_id, number, sandbox->>'refused_calls' FROM attempts
         WHERE run_id = ANY($1) AND sandbox->>'refused_calls' IS NOT NULL ORDER BY run_id, number",
    )
    .bind(runs)
    .fetch_all(executor)
    .await?;
    let mut words: BTreeMap<Uuid, Vec<(i32, String)>> = BTreeMap::new();
    for (run, number, word) in rows {
        words.entry(run).or_default().push((number, word));
    }
    Ok(words.into_iter().filter_map(|(run, words)| Some((run, Recorded::of_attempts(&words)?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_known_is_not_nothing_refused() {
        let told = |words: &[&str]| {
            let words: Vec<(i32, String)> =
                words.iter().zip(1..).map(|(word, number)| (number, (*word).to_owned())).collect();
            Recorded::of_attempts(&words)
        };
        assert_eq!(told(&[]), None);
        let clean = told(&["recorded"]).unwrap();
        assert_eq!((clean.text.as_str(), clean.calls(None)), ("recorded", Some(Vec::new())));
        let blind = told(&["not recorded: this runtime does not tell of them"]).unwrap();
        assert_eq!(blind.calls(None), None);
        assert_eq!(blind.text, "not recorded: this runtime does not tell of them");
        let broken = told(&["interrupted: the keeper has ended", "recorded"]).unwrap();
        assert_eq!(broken.text, "interrupted: attempt 1: the keeper has ended");
        assert_eq!(broken.calls(None), Some(Vec::new()));
    }
}
