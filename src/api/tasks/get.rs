//! `GET /tasks/{id}`.

use axum::extract::State;
use axum::{Extension, Json};
use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::extract::Path;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::db;
use crate::wire::problem::Problem;
use crate::wire::task::Task;

/// A task with its runs and, when it has ended, its results.
#[utoipa::path(get, path = "/tasks/{id}", tag = "tasks",
    params(("id" = Uuid, Path)),
    responses((status = 200, body = Task), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(in crate::api) async fn get_task(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<Uuid>,
) -> ApiResult<Json<Task>> {
    load(&state, &caller, id).await.map(Json)
}

/// # Errors
/// 404 if there is no such task.
pub(in crate::api) async fn load(state: &ApiState, caller: &Caller, id: Uuid) -> ApiResult<Task> {
    let row = db::tasks::find(&state.pool, &caller.visible, id).await?;
    let row = row.ok_or_else(|| ApiError::not_found("task"))?;
    db::task_view::to_wire(&state.pool, vec![row]).await?.pop().ok_or_else(|| ApiError::not_found("task"))
}
