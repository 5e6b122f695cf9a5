//! `/api/v1/tasks/{id}/runs/{cli}`.

pub(super) mod diff;
pub(super) mod files;
pub(super) mod log;

use uuid::Uuid;

use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::db;
use crate::db::runs::RunRow;

/// # Errors
/// 404 if there is no such task or run.
async fn find(state: &ApiState, task: Uuid, name: &str) -> ApiResult<RunRow> {
    db::runs::find_by_name(&state.pool, task, name).await?.ok_or_else(|| ApiError::not_found("run"))
}

/// # Errors
/// 409 while the run goes on.
async fn find_ended(state: &ApiState, task: Uuid, name: &str) -> ApiResult<RunRow> {
    let run = find(state, task, name).await?;
    if run.state().has_ended() {
        Ok(run)
    } else {
        Err(ApiError::conflict(format!("the run has not ended: {}", run.state())))
    }
}
