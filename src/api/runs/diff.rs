//! `GET /tasks/{id}/runs/{cli}/diff`.

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::extract::Path;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::runs::find_ended;
use crate::api::state::ApiState;
use crate::db;
use crate::db::error::DbError;
use crate::wire::problem::Problem;
use crate::wire::run::Diff;

/// What a run changed: a patch that `git apply` takes, or JSON, as `Accept` says.
#[utoipa::path(get, path = "/tasks/{id}/runs/{cli}/diff", tag = "runs",
    params(("id" = Uuid, Path), ("cli" = String, Path, description = "The run's name")),
    responses((status = 200, content((String = "text/x-diff"), (Diff = "application/json"))),
              (status = 401, body = Problem), (status = 404, body = Problem), (status = 406, body = Problem),
              (status = 409, body = Problem, description = "It has not ended")))]
pub(in crate::api) async fn run_diff(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path((task, name)): Path<(Uuid, String)>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let json = wants_json(&headers)?;
    let run = find_ended(&state, &caller, task, &name).await?;
    let result = db::results::find(&state.pool, &caller.visible, run.id).await?;
    let (patch, truncated, files) = match result {
        Some(result) => (result.patch, result.patch_truncated, result.files),
        None => (Vec::new(), false, serde_json::json!([])),
    };
    if json {
        let files = serde_json::from_value(files)
            .map_err(|problem| DbError::inconsistent("run_results", "files", run.id, problem))?;
        let diff = Diff {
            run: run.name,
            branch: run.branch,
            base_commit: run.base_commit,
            commit_hash: run.commit_hash,
            files,
            patch: String::from_utf8_lossy(&patch).into_owned(),
            truncated,
        };
        return Ok(axum::Json(diff).into_response());
    }
    let mut response = patch.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/x-diff; charset=utf-8"));
    headers
        .insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment; filename=\"run.diff\""));
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    if truncated {
        headers.insert("kage-truncated", HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// The first type in `Accept` that we have decides; without the header, the patch.
fn wants_json(headers: &HeaderMap) -> ApiResult<bool> {
    let Some(accept) = headers.get(header::ACCEPT) else { return Ok(false) };
    let accept = accept.to_str().map_err(|_| ApiError::malformed("Accept is not ASCII"))?;
    for entry in accept.split(',') {
        match entry.split(';').next().unwrap_or_default().trim() {
            "application/json" | "application/*" => return Ok(true),
            "text/x-diff" | "text/x-patch" | "text/plain" | "text/*" | "*/*" | "" => return Ok(false),
            _ => {}
        }
    }
    Err(ApiError::not_acceptable("a diff is text/x-diff or application/json"))
}
