//! `GET /tasks`.

use axum::extract::State;
use axum::{Extension, Json};

use crate::api::auth::Caller;
use crate::api::extract::Query;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::db;
use crate::wire::problem::Problem;
use crate::wire::task::{TaskFilter, TaskPage};

/// Tasks, newest first. A description is cut to its first 4096 characters here, and contexts are left out.
#[utoipa::path(get, path = "/tasks", tag = "tasks", params(TaskFilter),
    responses((status = 200, body = TaskPage), (status = 401, body = Problem), (status = 422, body = Problem)))]
pub(in crate::api) async fn list_tasks(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Query(filter): Query<TaskFilter>,
) -> ApiResult<Json<TaskPage>> {
    let (page, page_size) = (filter.page.unwrap_or(1), filter.page_size.unwrap_or(50));
    if page == 0 {
        return Err(ApiError::invalid("page counts from 1"));
    }
    if !(1..=100).contains(&page_size) {
        return Err(ApiError::invalid("page_size is 1 to 100"));
    }
    let offset = i64::from(page - 1) * i64::from(page_size);
    let (rows, total) =
        db::task_reads::page(&state.pool, &caller.visible, filter.status, offset, i64::from(page_size))
            .await?;
    let tasks = db::task_view::to_wire(&state.pool, rows).await?;
    Ok(Json(TaskPage { tasks, total: total.unsigned_abs(), page, page_size }))
}
