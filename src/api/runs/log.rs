//! `GET /tasks/{id}/runs/{cli}/log`.

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use sqlx::PgPool;
use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::extract::Path;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::runs::{find, still_there};
use crate::api::state::ApiState;
use crate::db;
use crate::db::error::DbError;
use crate::wire::let_go;
use crate::wire::problem::Problem;

/// Blocks of one query; a block is at most 64 KiB.
const PAGE: i64 = 16;

/// All output of a run so far (both streams, every attempt, in order) as it was written; `Range` in bytes.
#[utoipa::path(get, path = "/tasks/{id}/runs/{cli}/log", tag = "runs",
    params(("id" = Uuid, Path), ("cli" = String, Path, description = "The run's name"),
           ("Range" = Option<String>, Header, pattern = r"^bytes=([0-9]+-[0-9]*|-[0-9]+)$",
            description = "bytes=FIRST-LAST, bytes=FIRST- or bytes=-COUNT")),
    responses((status = 200, content_type = "text/plain", body = String),
              (status = 206, content_type = "text/plain", body = String),
              (status = 400, body = Problem), (status = 401, body = Problem), (status = 404, body = Problem),
              (status = 410, body = Problem, description = "It was let go"), (status = 416, body = Problem)))]
pub(in crate::api) async fn run_log(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path((task, name)): Path<(Uuid, String)>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let run = find(&state, &caller, task, &name).await?;
    let total = run.output_bytes.unsigned_abs();
    if total > 0 {
        still_there(&state, &caller, task, let_go::LOG).await?;
    }
    let range = match headers.get(header::RANGE) {
        None => None,
        Some(value) => {
            let text = value.to_str().map_err(|_| ApiError::malformed("Range is not ASCII"))?;
            let refuse =
                || ApiError::range(format!("{text:?} is no single byte range of {total} bytes"), total);
            Some(parse_range(text, total).ok_or_else(refuse)?)
        }
    };
    let (first, end) = range.unwrap_or((0, total));
    let mut response =
        Body::from_stream(blocks(state.pool.clone(), caller, (task, run.id), first, end)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment; filename=\"run.log\""));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(end - first));
    if range.is_some() {
        let value = format!("bytes {first}-{}/{total}", end - 1);
        headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(&value).expect("digits"));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// First byte and the one after the last, of a range that holds at least one byte.
fn parse_range(text: &str, total: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (first, end) = match (first, last) {
        ("", count) => (total.saturating_sub(count.parse().ok()?), total),
        (first, "") => (first.parse().ok()?, total),
        (first, last) => (first.parse().ok()?, last.parse::<u64>().ok()?.saturating_add(1).min(total)),
    };
    (first < end).then_some((first, end))
}

/// Bytes `first..end` of a run's output, a page of blocks at a time.
fn blocks(
    pool: PgPool,
    caller: Caller,
    (task, run): (Uuid, Uuid),
    first: u64,
    end: u64,
) -> impl Stream<Item = Result<Bytes, DbError>> {
    async_stream::try_stream! {
        let mut next = first;
        while next < end {
            let page = db::events::log_blocks(&pool, &caller.visible, &caller.bearer, (task, run), next as i64, PAGE).await?;
            let before = next;
            for (position, bytes) in page {
                let position = position.unsigned_abs();
                let block_end = position + bytes.len() as u64;
                if block_end <= next || next >= end {
                    continue;
                }
                let bytes = Bytes::from(bytes).slice((next - position) as usize..(end.min(block_end) - position) as usize);
                next = end.min(block_end);
                yield bytes;
            }
            if next == before {
                Err(DbError::inconsistent("events", "log_position", run, format!("no block holds byte {next}")))?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse_range;

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("bytes=0-0", Some((0, 1))),
            ("bytes=0-", Some((0, 10))),
            ("bytes=3-5", Some((3, 6))),
            ("bytes=3-99", Some((3, 10))),
            ("bytes=-4", Some((6, 10))),
            ("bytes=-99", Some((0, 10))),
            ("bytes=10-", None),
            ("bytes=5-3", None),
            ("bytes=-0", None),
            ("bytes=0-1,3-4", None),
            ("lines=0-1", None),
        ] {
            assert_eq!(parse_range(text, 10), expected, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), None);
    }
}
