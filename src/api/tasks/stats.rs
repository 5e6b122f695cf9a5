//! `GET /tasks/stats`.

use axum::extract::State;
use axum::{Extension, Json};

use crate::api::auth::Caller;
use crate::api::problem::ApiResult;
use crate::api::state::ApiState;
use crate::db;
use crate::wire::problem::Problem;
use crate::wire::task::Stats;

/// Totals for each CLI.
#[utoipa::path(get, path = "/tasks/stats", tag = "tasks",
    responses((status = 200, body = Stats), (status = 401, body = Problem)))]
pub(in crate::api) async fn task_stats(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Json<Stats>> {
    Ok(Json(db::task_stats::of(&state.pool, &caller.visible).await?))
}
