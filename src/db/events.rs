//! The event log: one sequence a task, exact as a cursor.
//!
//! Rows of concurrent transactions become visible out of the order of an ordinary sequence, so a
//! bare `id > cursor` loses events. Here a writer takes its numbers from the task's row and holds
//! that row's lock until it commits: what a reader sees is always a prefix.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::db::error::DbError;
use crate::db::keys::Bearer;
use crate::db::visible::Visible;
use crate::domain::event::EventKind;

/// An event to append.
#[derive(Debug, Clone)]
pub enum NewEvent {
    Log {
        attempt: i32,
        /// 1 standard output, 2 standard error.
        stream: i16,
        offset: i64,
        position: i64,
        bytes: Vec<u8>,
    },
    Other {
        kind: EventKind,
        payload: Value,
    },
}

impl NewEvent {
    /// # Panics
    /// Never: the payloads are plain structs of ours.
    pub fn other(kind: EventKind, payload: &impl serde::Serialize) -> Self {
        Self::Other { kind, payload: serde_json::to_value(payload).expect("plain struct") }
    }
}

/// A stored event.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct EventRow {
    pub seq: i64,
    pub kind: String,
    pub at: DateTime<Utc>,
    pub run_name: Option<String>,
    pub payload: Option<Value>,
    pub attempt: Option<i32>,
    pub stream: Option<i16>,
    pub log_offset: Option<i64>,
    pub log: Option<Vec<u8>>,
}

/// Appends events to a task's stream. Takes the task's row lock and keeps it until the
/// transaction ends: call it **before** touching the run's row.
///
/// # Errors
/// [`DbError`].
pub async fn append(
    connection: &mut PgConnection,
    task: Uuid,
    run: Option<Uuid>,
    events: &[NewEvent],
) -> Result<i64, DbError> {
    let count = i64::try_from(events.len()).map_err(|_| DbError::Settings("too many events".to_owned()))?;
    let last: i64 = sqlx::query_scalar(
        "UPDATE tasks SET event_seq = event_seq + $2, updated_at = now() WHERE id = $1 RETURNING event_seq",
    )
    .bind(task)
    .bind(count)
    .fetch_one(&mut *connection)
    .await?;
    let mut columns = Columns::default();
    for (seq, event) in (last - count + 1..).zip(events) {
        columns.push(seq, event);
    }
    sqlx::query(
        "INSERT INTO events (task_id, run_id, seq, kind, payload, attempt, stream, log_offset, log_position, log)
         SELECT $1, $2, * FROM unnest($3::bigint[], $4::text[], $5::jsonb[], $6::integer[], $7::smallint[],
                                      $8::bigint[], $9::bigint[], $10::bytea[])",
    )
    .bind(task)
    .bind(run)
    .bind(columns.seq)
    .bind(columns.kind)
    .bind(columns.payload)
    .bind(columns.attempt)
    .bind(columns.stream)
    .bind(columns.offset)
    .bind(columns.position)
    .bind(columns.bytes)
    .execute(connection)
    .await?;
    Ok(last)
}

#[derive(Default)]
struct Columns<'a> {
    seq: Vec<i64>,
    kind: Vec<&'static str>,
    payload: Vec<Option<&'a Value>>,
    attempt: Vec<Option<i32>>,
    stream: Vec<Option<i16>>,
    offset: Vec<Option<i64>>,
    position: Vec<Option<i64>>,
    bytes: Vec<Option<&'a [u8]>>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, seq: i64, event: &'a NewEvent) {
        self.seq.push(seq);
        match event {
            NewEvent::Log { attempt, stream, offset, position, bytes } => {
                self.kind.push(EventKind::Log.as_str());
                self.payload.push(None);
                self.attempt.push(Some(*attempt));
                self.stream.push(Some(*stream));
                self.offset.push(Some(*offset));
                self.position.push(Some(*position));
                self.bytes.push(Some(bytes));
            }
            NewEvent::Other { kind, payload } => {
                self.kind.push(kind.as_str());
                self.payload.push(Some(payload));
                self.attempt.push(None);
                self.stream.push(None);
                self.offset.push(None);
                self.position.push(None);
                self.bytes.push(None);
            }
        }
    }
}

/// The next events after a cursor, oldest first. With `run`, that run's events and the task's own. None for a bearer
/// whose secret is no longer taken.
///
/// # Errors
/// [`DbError`].
pub async fn after(
    pool: &PgPool,
    visible: &Visible,
    bearer: &Bearer,
    task: Uuid,
    cursor: i64,
    run: Option<Uuid>,
    limit: i64,
) -> Result<Vec<EventRow>, DbError> {
    Ok(sqlx::query_as(
        "SELECT e.seq, e.kind, e.at, r.name AS run_name, e.payload, e.attempt, e.stream, e.log_offset, e.log
         FROM events e LEFT JOIN runs r ON r.id = e.run_id
         WHERE e.task_id = $5 AND e.seq > $6 AND ($7::uuid IS NULL OR e.run_id IS NULL OR e.run_id = $7)
           AND (SELECT sees_task(repository, clis, $1, $2) FROM tasks WHERE id = $5)
           AND (SELECT bearer_is_taken($3, $4))
         ORDER BY e.seq LIMIT $8",
    )
    .bind(visible.repositories())
    .bind(visible.clis())
    .bind(&bearer.key_id)
    .bind(&bearer.secret_sha256[..])
    .bind(task)
    .bind(cursor)
    .bind(run)
    .bind(limit)
    .fetch_all(pool)
    .await?)
}

/// The blocks of the output of a run of this task that overlap positions from `from` on, oldest first. None for a bearer
/// whose secret is no longer taken. The task says in which month's table they are.
///
/// # Errors
/// [`DbError`].
pub async fn log_blocks(
    pool: &PgPool,
    visible: &Visible,
    bearer: &Bearer,
    (task, run): (Uuid, Uuid),
    from: i64,
    limit: i64,
) -> Result<Vec<(i64, Vec<u8>)>, DbError> {
    Ok(sqlx::query_as(
        "SELECT log_position, log FROM events
         WHERE task_id = $8 AND run_id = $5 AND kind = 'log' AND log_position >= (
             SELECT coalesce(max(log_position), 0) FROM events
             WHERE task_id = $8 AND run_id = $5 AND kind = 'log' AND log_position <= $6)
           AND (SELECT sees_task(repository, clis, $1, $2) FROM tasks WHERE id = $8)
           AND (SELECT bearer_is_taken($3, $4))
         ORDER BY log_position LIMIT $7",
    )
    .bind(visible.repositories())
    .bind(visible.clis())
    .bind(&bearer.key_id)
    .bind(&bearer.secret_sha256[..])
    .bind(run)
    .bind(from)
    .bind(limit)
    .bind(task)
    .fetch_all(pool)
    .await?)
}

/// The end of an attempt's standard output after its last newline, at most `limit` bytes:
/// what a runner that takes the run up again needs to go on with whole lines.
///
/// # Errors
/// [`DbError`].
pub async fn partial_line(
    pool: &PgPool,
    (task, run): (Uuid, Uuid),
    attempt: i32,
    limit: usize,
) -> Result<Vec<u8>, DbError> {
    let mut tail: Vec<u8> = Vec::new();
    let mut before = i64::MAX;
    loop {
        let block: Option<(i64, Vec<u8>)> = sqlx::query_as(
            "SELECT log_position, log FROM events
             WHERE task_id = $4 AND run_id = $1 AND kind = 'log' AND attempt = $2 AND stream = 1 AND log_position < $3
             ORDER BY log_position DESC LIMIT 1",
        )
        .bind(run)
        .bind(attempt)
        .bind(before)
        .bind(task)
        .fetch_optional(pool)
        .await?;
        let Some((position, bytes)) = block else { return Ok(tail) };
        before = position;
        if let Some(newline) = bytes.iter().rposition(|byte| *byte == b'\n') {
            return Ok([&bytes[newline + 1..], &tail].concat());
        }
        tail = [bytes, tail].concat();
        if tail.len() > limit {
            return Ok(tail);
        }
    }
}

/// Blocks that are read for the last words of an attempt: a CLI that writes little at a time makes small ones.
const LAST_BLOCKS: i64 = 64;

/// The end of an attempt's output, of both streams together, at most `limit` bytes.
///
/// # Errors
/// [`DbError`].
pub async fn last_output(
    pool: &PgPool,
    (task, run): (Uuid, Uuid),
    attempt: i32,
    limit: usize,
) -> Result<Vec<u8>, DbError> {
    let mut blocks: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT log FROM events WHERE task_id = $1 AND run_id = $2 AND kind = 'log' AND attempt = $3
         ORDER BY log_position DESC LIMIT $4",
    )
    .bind(task)
    .bind(run)
    .bind(attempt)
    .bind(LAST_BLOCKS)
    .fetch_all(pool)
    .await?;
    blocks.reverse();
    let mut output = blocks.concat();
    output.drain(..output.len().saturating_sub(limit));
    Ok(output)
}
