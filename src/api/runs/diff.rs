//! `GET /tasks/{id}/runs/{cli}/diff`.

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::extract::Path;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::runs::{files, find_ended, or_let_go, still_there};
use crate::api::state::ApiState;
use crate::db;
use crate::db::results::PatchRow;
use crate::wire::let_go;
use crate::wire::problem::Problem;
use crate::wire::run::Diff;

/// Bytes of a patch in JSON, which can make six of one.
const JSON_PATCH_BYTES: i32 = 4 << 20;

/// What a run changed: a patch that `git apply` takes, or JSON, as `Accept` says.
#[utoipa::path(get, path = "/tasks/{id}/runs/{cli}/diff", tag = "runs",
    params(("id" = Uuid, Path), ("cli" = String, Path, description = "The run's name")),
    responses((status = 200, content((String = "text/x-diff"), (Diff = "application/json"))),
              (status = 400, body = Problem), (status = 401, body = Problem), (status = 404, body = Problem), (status = 406, body = Problem),
              (status = 409, body = Problem, description = "It has not ended"),
              (status = 410, body = Problem, description = "It was let go")))]
pub(in crate::api) async fn run_diff(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path((task, name)): Path<(Uuid, String)>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let json = wants_json(&headers)?;
    let run = find_ended(&state, &caller, task, &name).await?;
    still_there(&state, &caller, task, let_go::RESULTS).await?;
    let max_bytes = json.then_some(JSON_PATCH_BYTES);
    let found = db::results::patch(&state.pool, &caller.visible, run.id, max_bytes).await?;
    let mut found = or_let_go(&state, &caller, task, found).await?;
    whole_files(&mut found);
    let PatchRow { patch, truncated, .. } = found;
    if json {
        let page = db::results::files(&state.pool, &caller.visible, run.id, 0, files::MOST_FILES).await?;
        let page = or_let_go(&state, &caller, task, page).await?;
        let files = files::to_wire(run.id, page.files)?;
        let diff = Diff {
            files_truncated: (files.len() as u64) < page.total,
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

/// Ends a patch that is not the whole one before the file that was cut. No line of content begins so: it has a sign before it.
fn whole_files(found: &mut PatchRow) {
    const HEAD: &[u8] = b"\ndiff --git ";
    if (found.patch.len() as u64) < found.bytes.unsigned_abs() {
        let last = found.patch.windows(HEAD.len()).rposition(|bytes| bytes == HEAD);
        found.patch.truncate(last.map_or(0, |at| at + 1));
        found.truncated = true;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_patch_ends_with_a_whole_file() {
        let cut = |patch: &str, bytes: i64| {
            let mut found = PatchRow { patch: patch.into(), bytes, truncated: false };
            whole_files(&mut found);
            (String::from_utf8(found.patch).expect("it was text"), found.truncated)
        };
        let (one, two) = ("diff --git a/1 b/1\n+x\n", "diff --git a/2 b/2\n+dif");
        let both = format!("{one}{two}");
        assert_eq!(cut(&both, both.len() as i64), (both.clone(), false));
        assert_eq!(cut(&both, both.len() as i64 + 1), (one.to_owned(), true));
        assert_eq!(cut(one, 100), (String::new(), true));
    }
}
