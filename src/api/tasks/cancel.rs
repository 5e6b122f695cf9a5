//! `DELETE /tasks/{id}`.

use axum::extract::State;
use axum::{Extension, Json};
use serde_json::json;
use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::extract::Path;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::db;
use crate::db::tasks::Cancel;
use crate::domain::task::TaskStatus;
use crate::wire::problem::Problem;
use crate::wire::task::Cancelled;

/// Cancels: runs that wait end at once; those that work are ended by their runner, and what they
/// had changed is kept on their branches.
#[utoipa::path(delete, path = "/tasks/{id}", tag = "tasks",
    params(("id" = Uuid, Path)),
    responses((status = 200, body = Cancelled), (status = 401, body = Problem), (status = 404, body = Problem),
              (status = 409, body = Problem, description = "It has ended")))]
pub(in crate::api) async fn cancel_task(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<Uuid>,
) -> ApiResult<Json<Cancelled>> {
    let entry = caller.did("task.cancel", format!("task:{id}"), json!({}));
    let transaction = caller.begin(&state).await?;
    match db::tasks::cancel(transaction, &caller.visible, id, &entry).await? {
        Cancel::NotFound => Err(ApiError::not_found("task")),
        Cancel::Ended(status) => Err(ApiError::conflict(format!("the task has ended: {status}"))),
        Cancel::Done => {
            db::notify::send(&state.pool, db::notify::CANCEL, &id.to_string()).await?;
            db::notify::send(&state.pool, db::notify::EVENTS, &id.to_string()).await?;
            let message = "Task cancelled".to_owned();
            Ok(Json(Cancelled { message, task_id: id, status: TaskStatus::Cancelled }))
        }
    }
}
