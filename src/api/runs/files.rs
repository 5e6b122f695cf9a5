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
use crate::wire::run::Files;

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
    let (files, warnings) = match db::results::files(&state.pool, &caller.visible, run.id).await? {
        None => (Vec::new(), Vec::new()),
        Some((files, warnings)) => {
            let broken = |column, problem| DbError::inconsistent("run_results", column, run.id, problem);
            let files = serde_json::from_value(files).map_err(|problem| broken("files", problem))?;
            let warnings = serde_json::from_value(warnings).map_err(|problem| broken("warnings", problem))?;
            (files, warnings)
        }
    };
    Ok(Json(Files { run: run.name, branch: run.branch, commit_hash: run.commit_hash, files, warnings }))
}
