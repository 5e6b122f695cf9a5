//! `GET /tasks/{id}/runs/{cli}/files`.

use axum::extract::State;
use axum::{Extension, Json};
use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::extract::Path;
use crate::api::problem::ApiResult;
use crate::api::runs::find_ended;
use crate::api::state::ApiState;
use crate::db;
use crate::db::error::DbError;
use crate::wire::problem::Problem;
use crate::wire::run::{Files, HarvestFindings};

/// The files that a run changed, and what its harvest left out.
#[utoipa::path(get, path = "/tasks/{id}/runs/{cli}/files", tag = "runs",
    params(("id" = Uuid, Path), ("cli" = String, Path, description = "The run's name")),
    responses((status = 200, body = Files), (status = 401, body = Problem), (status = 404, body = Problem),
              (status = 409, body = Problem, description = "It has not ended")))]
pub(in crate::api) async fn run_files(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path((task, name)): Path<(Uuid, String)>,
) -> ApiResult<Json<Files>> {
    let run = find_ended(&state, &caller, task, &name).await?;
    let (files, found) = match db::results::files(&state.pool, &caller.visible, run.id).await? {
        None => (Vec::new(), HarvestFindings::default()),
        Some((files, found)) => {
            let broken = |problem| DbError::inconsistent("run_results", "files", run.id, problem);
            (serde_json::from_value(files).map_err(broken)?, found)
        }
    };
    let HarvestFindings { warnings, rejected, flagged } = found;
    let (branch, commit_hash) = (run.branch, run.commit_hash);
    Ok(Json(Files { run: run.name, branch, commit_hash, files, rejected, flagged, warnings }))
}
