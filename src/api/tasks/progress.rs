//! `GET /tasks/{id}/progress`: the task's events, from the start or a cursor, live until its end.
//!
//! Pulled by the connection: while a client does not read, nothing is fetched for it, and the
//! listener cuts it off after the stall time. At most one page of events is in memory for each.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use futures::Stream;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use utoipa::IntoParams;
use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::extract::{Path, Query};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::api::streams::Place;
use crate::db;
use crate::db::error::DbError;
use crate::db::events::EventRow;
use crate::domain::event::EventKind;
use crate::metrics::http::Stream as Counted;
use crate::metrics::metrics;
use crate::wire::event::{Connected, Log, StreamEvent};
use crate::wire::let_go::{self, LetGo, Missing};
use crate::wire::problem::Problem;

/// Events of one query; a log event is at most 64 KiB.
const PAGE: i64 = 16;
const HEARTBEAT: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct Cursor {
    /// Events after this id. The `Last-Event-ID` header goes before it.
    #[param(minimum = 0)]
    after: Option<i64>,
    /// Only this run's events, and the task's own.
    #[param(pattern = r"^[^\x00]*$")]
    run: Option<String>,
}

/// A task's events as Server-Sent Events: `connected`, `state`, `progress`, `log`, `result`, `warning`,
/// `error`, `heartbeat`, `let_go` (output is no longer kept), and `task_complete`, after which the stream ends. Ids rise by one; resume with
/// `Last-Event-ID` (or `after`) without gap or duplicate, also long after the task has ended.
#[utoipa::path(get, path = "/tasks/{id}/progress", tag = "tasks",
    params(("id" = Uuid, Path), Cursor, ("Last-Event-ID" = Option<String>, Header, pattern = "^[0-9]*$",
            description = "Events after this id; empty: as if it were not there")),
    responses((status = 200, content_type = "text/event-stream", body = StreamEvent),
              (status = 401, body = Problem), (status = 404, body = Problem),
              (status = 410, body = Problem, description = "The events were let go"), (status = 422, body = Problem),
              (status = 429, body = Problem, description = "As many streams of the key are open as may be"),
              (status = 503, body = Problem, description = "As many streams are open as may be")))]
pub(in crate::api) async fn task_progress(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<Uuid>,
    Query(cursor): Query<Cursor>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let row = db::task_reads::standing(&state.pool, &caller.visible, id).await?;
    let row = row.ok_or_else(|| ApiError::not_found("task"))?;
    // Also where the header goes before it.
    if cursor.after.is_some_and(|after| after < 0) {
        return Err(ApiError::invalid("after: the id of an event of this stream"));
    }
    let last = match headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?").trim()) {
        Some("") | None => cursor.after.unwrap_or(0),
        Some(text) => {
            // Digits alone: Rust's numbers may have a sign.
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let id = text.parse().ok().filter(|_| digits);
            id.ok_or_else(|| ApiError::invalid("Last-Event-ID: the id of an event of this stream"))?
        }
    };
    if last < 0 || last > row.event_seq {
        return Err(ApiError::invalid(format!(
            "this stream has events 1 to {}; {last} is none of them",
            row.event_seq
        )));
    }
    let gone = db::let_go::of_task(&state.pool, &caller.visible, id).await?;
    // Also where all that is left would come after the cursor: without its last event a stream has no end.
    if let Some(gone) = let_go::find(&gone, let_go::EVENTS) {
        return Err(ApiError::let_go(gone));
    }
    let run = match &cursor.run {
        None => None,
        Some(name) => {
            let run = db::runs::find_by_name(&state.pool, &caller.visible, id, name).await?;
            Some(run.ok_or_else(|| ApiError::not_found(&format!("run as {name:?} in this task")))?.id)
        }
    };
    let place = state.streams.take(&caller.key_id)?;
    let connected = Connected { task_id: id, status: row.status, timestamp: Utc::now() };
    let mut hello = String::new();
    frame(&mut hello, None, "connected", &connected);
    let told = let_go::find(&gone, let_go::LOG);
    if let Some(gone) = told {
        missing(&mut hello, id, gone);
    }
    let (wake, ended) = (state.hub.subscribe(id), state.bearers.watch(&caller.bearer));
    let begun = Utc::now();
    let counted = metrics().http.stream();
    let follower = Follower {
        wake,
        ended,
        state,
        caller,
        task: id,
        run,
        last,
        told: told.is_some(),
        complete: false,
        begun,
        _counted: counted,
        _place: place,
    };
    let mut response = Body::from_stream(follow(follower, hello)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Reverse proxies that buffer would hold events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

struct Follower {
    state: ApiState,
    caller: Caller,
    task: Uuid,
    run: Option<Uuid>,
    last: i64,
    wake: watch::Receiver<i64>,
    /// True when the caller's key is no longer taken.
    ended: watch::Receiver<bool>,
    /// That the output is no longer there.
    told: bool,
    /// The task's last event was sent.
    complete: bool,
    /// What was there before is not late.
    begun: DateTime<Utc>,
    _counted: Counted,
    _place: Place,
}

/// One step of a stream.
enum Step {
    Send(String),
    /// Nothing new now.
    Wait,
    /// It ends before its task, and says why.
    Broken(&'static str),
    End,
}

fn follow(mut follower: Follower, hello: String) -> impl Stream<Item = Result<Bytes, Infallible>> {
    async_stream::stream! {
        yield Ok(Bytes::from(hello));
        loop {
            // Armed before the query: what comes in between wakes.
            follower.wake.mark_unchanged();
            // Boxed, so that a stream that waits does not hold the memory of a query.
            match Box::pin(follower.step()).await {
                Ok(Step::Send(frames)) => yield Ok(Bytes::from(frames)),
                Ok(Step::End) => return,
                Ok(Step::Broken(why)) => {
                    yield Ok(Bytes::from(broken(follower.task, why)));
                    return;
                }
                // A heartbeat is no reason to ask the database: thousands of streams wait at a time.
                Ok(Step::Wait) => loop {
                    tokio::select! {
                        () = follower.state.soft.cancelled() => return,
                        () = ended(&mut follower.ended) => {
                            yield Ok(Bytes::from(broken(follower.task, follower.caller.ended())));
                            return;
                        }
                        _ = follower.wake.changed() => break,
                        () = tokio::time::sleep(HEARTBEAT) => yield Ok(Bytes::from(heartbeat())),
                    }
                },
                Err(_) => {
                    yield Ok(Bytes::from(broken(follower.task, "the stream broke; connect again")));
                    return;
                }
            }
        }
    }
}

async fn ended(key: &mut watch::Receiver<bool>) {
    // An error: nobody looks after this key any more.
    drop(key.wait_for(|ended| *ended).await);
}

/// No id: the client's cursor stays.
fn missing(frames: &mut String, task: Uuid, gone: &LetGo) {
    let payload = Missing { task_id: task, let_go: gone.clone() };
    frame(frames, None, "let_go", &payload);
}

/// Why a stream ends before its task. No id: the client's cursor stays, and it comes back with it.
fn broken(task: Uuid, message: &str) -> String {
    let mut text = String::new();
    let problem = json!({ "task_id": task, "message": message, "timestamp": Utc::now() });
    frame(&mut text, None, EventKind::Error.as_str(), &problem);
    text
}

impl Follower {
    async fn after(&self, limit: i64) -> Result<Vec<EventRow>, DbError> {
        let Caller { visible, bearer, .. } = &self.caller;
        db::events::after(&self.state.pool, visible, bearer, self.task, self.last, self.run, limit).await
    }

    /// Whether the events themselves were let go while this stream was open.
    async fn lost(&self) -> Result<bool, DbError> {
        let all = db::let_go::of_task(&self.state.pool, &self.caller.visible, self.task).await?;
        Ok(let_go::find(&all, let_go::EVENTS).is_some())
    }

    async fn tell_missing(&mut self, frames: &mut String) -> Result<(), DbError> {
        let all = db::let_go::of_task(&self.state.pool, &self.caller.visible, self.task).await?;
        if let Some(gone) = let_go::find(&all, let_go::LOG) {
            missing(frames, self.task, gone);
            self.told = true;
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<Step, ApiError> {
        let rows = self.after(PAGE).await?;
        let Some(newest) = rows.last() else {
            // The task's end and its last event are one transaction: read the end first, then look again.
            let ended = db::task_reads::standing(&self.state.pool, &self.caller.visible, self.task)
                .await?
                .is_none_or(|task| task.ended);
            if !ended {
                return Ok(Step::Wait);
            }
            let rows = self.after(1).await?;
            return Ok(if !rows.is_empty() {
                Step::Send(String::new())
            } else if !self.complete && self.lost().await? {
                Step::Broken("the rest of the events was let go")
            } else {
                Step::End
            });
        };
        self.last = newest.seq;
        let late = (Utc::now() - newest.at.max(self.begun)).to_std().unwrap_or_default();
        metrics().http.stream_lagged(late);
        let mut frames = String::with_capacity(rows.iter().map(size).sum());
        // A reader who was slower than the rules: before the last event it hears that output is missing.
        self.complete |= rows.iter().any(|row| row.kind == EventKind::TaskComplete.as_str());
        if self.complete && !self.told {
            self.tell_missing(&mut frames).await?;
        }
        for row in rows {
            frame_of(&mut frames, row);
        }
        Ok(Step::Send(frames))
    }
}

fn size(row: &EventRow) -> usize {
    256 + row.log.as_ref().map_or(256, |log| log.len() + log.len() / 8)
}

fn frame_of(frames: &mut String, row: EventRow) {
    let Some(bytes) = row.log else {
        frame(frames, Some(row.seq), &row.kind, &row.payload);
        return;
    };
    let (text, base64) = match String::from_utf8(bytes) {
        Ok(text) => (text, None),
        Err(error) => {
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            (text, Some(STANDARD.encode(error.as_bytes())))
        }
    };
    let log = Log {
        run: row.run_name.unwrap_or_default(),
        attempt: row.attempt.unwrap_or(0).unsigned_abs(),
        stream: if row.stream == Some(2) { "stderr" } else { "stdout" }.to_owned(),
        offset: row.log_offset.unwrap_or(0).unsigned_abs(),
        text,
        base64,
    };
    frame(frames, Some(row.seq), &row.kind, &log);
}

/// JSON has no raw line break, so one `data:` line holds any payload whole.
fn frame(frames: &mut String, id: Option<i64>, event: &str, payload: &impl Serialize) {
    let data = serde_json::to_string(payload).expect("plain struct");
    let written = match id {
        Some(id) => write!(frames, "event: {event}\nid: {id}\ndata: {data}\n\n"),
        None => write!(frames, "event: {event}\ndata: {data}\n\n"),
    };
    written.expect("a String takes everything");
}

/// A comment for proxies and, for the predecessor's clients, its event. Without an id: the cursor stays.
fn heartbeat() -> String {
    let mut text = ": keep-alive\n".to_owned();
    frame(&mut text, None, "heartbeat", &json!({ "timestamp": Utc::now() }));
    text
}
