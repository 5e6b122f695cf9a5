//! `GET /tasks/{id}/runs/{cli}/files`.

use axum::extract::State;
use axum::{Extension, Json};
use serde_json::Value;
use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::extract::{Path, Query};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::runs::{find_ended, or_let_go, still_there};
use crate::api::state::ApiState;
use crate::db;
use crate::db::error::DbError;
use crate::db::results::FilesPage;
use crate::wire::let_go;
use crate::wire::problem::Problem;
use crate::wire::run::{FileChange, Files, FilesPart, HarvestFindings};

/// Files in an answer.
pub(super) const MOST_FILES: u32 = 10_000;

/// The files that a run changed, and what its harvest left out.
#[utoipa::path(get, path = "/tasks/{id}/runs/{cli}/files", tag = "runs",
    params(("id" = Uuid, Path), ("cli" = String, Path, description = "The run's name"), FilesPart),
    responses((status = 200, body = Files), (status = 401, body = Problem), (status = 404, body = Problem),
              (status = 409, body = Problem, description = "It has not ended"),
              (status = 410, body = Problem, description = "It was let go"), (status = 422, body = Problem)))]
pub(in crate::api) async fn run_files(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path((task, name)): Path<(Uuid, String)>,
    Query(part): Query<FilesPart>,
) -> ApiResult<Json<Files>> {
    let limit = part.limit.unwrap_or(MOST_FILES);
    if !(1..=MOST_FILES).contains(&limit) {
        return Err(ApiError::invalid(format!("limit is 1 to {MOST_FILES}")));
    }
    let after = part.after.unwrap_or(0);
    if i64::try_from(after).is_err() {
        return Err(ApiError::invalid("after is a number of files"));
    }
    let run = find_ended(&state, &caller, task, &name).await?;
    still_there(&state, &caller, task, let_go::RESULTS).await?;
    let page = db::results::files(&state.pool, &caller.visible, run.id, after, limit).await?;
    let FilesPage { files, total, findings } = or_let_go(&state, &caller, task, page).await?;
    let files = to_wire(run.id, files)?;
    let HarvestFindings { warnings, rejected, flagged } = findings;
    let seen = after.saturating_add(files.len() as u64);
    let next = (!files.is_empty() && seen < total).then_some(seen);
    let (branch, commit_hash) = (run.branch, run.commit_hash);
    Ok(Json(Files { run: run.name, branch, commit_hash, files, total, next, rejected, flagged, warnings }))
}

pub(super) fn to_wire(run: Uuid, files: Vec<Value>) -> Result<Vec<FileChange>, DbError> {
    let broken = |problem| DbError::inconsistent("run_results", "files", run, problem);
    files.into_iter().map(|file| serde_json::from_value(file).map_err(broken)).collect()
}
