//! `GET /tasks/stats`.

use axum::Json;
use axum::extract::State;

use crate::api::problem::ApiResult;
use crate::api::state::ApiState;
use crate::db;
use crate::wire::problem::Problem;
use crate::wire::task::Stats;

/// Totals for each CLI.
#[utoipa::path(get, path = "/tasks/stats", tag = "tasks", security(("key" = [])),
    responses((status = 200, body = Stats), (status = 401, body = Problem)))]
pub(in crate::api) async fn task_stats(State(state): State<ApiState>) -> ApiResult<Json<Stats>> {
    Ok(Json(db::tasks::stats(&state.pool).await?))
}
