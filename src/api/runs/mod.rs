//! `/api/v1/tasks/{id}/runs/{cli}`.

pub(super) mod diff;
pub(super) mod files;
pub(super) mod log;

use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::db;
use crate::db::runs::RunRow;
use crate::wire::let_go;

/// # Errors
/// 404 if there is no such task or run.
async fn find(state: &ApiState, caller: &Caller, task: Uuid, name: &str) -> ApiResult<RunRow> {
    let row = db::runs::find_by_name(&state.pool, &caller.visible, task, name).await?;
    row.ok_or_else(|| ApiError::not_found("run"))
}

/// # Errors
/// 410 if the operator's rules have let it go.
async fn still_there(state: &ApiState, caller: &Caller, task: Uuid, what: &str) -> ApiResult<()> {
    let all = db::let_go::of_task(&state.pool, &caller.visible, task).await?;
    match let_go::find(&all, what) {
        Some(gone) => Err(ApiError::let_go(gone)),
        None => Ok(()),
    }
}

/// What was found of a result. Where nothing was: either there never was any, or it was let go since it was asked for.
///
/// # Errors
/// 410 if the operator's rules have let it go.
async fn or_let_go<T: Default>(
    state: &ApiState,
    caller: &Caller,
    task: Uuid,
    found: Option<T>,
) -> ApiResult<T> {
    match found {
        Some(found) => Ok(found),
        None => still_there(state, caller, task, let_go::RESULTS).await.map(|()| T::default()),
    }
}

/// # Errors
/// 409 while the run goes on.
async fn find_ended(state: &ApiState, caller: &Caller, task: Uuid, name: &str) -> ApiResult<RunRow> {
    let run = find(state, caller, task, name).await?;
    if run.state().has_ended() {
        Ok(run)
    } else {
        Err(ApiError::conflict(format!("the run has not ended: {}", run.state())))
    }
}
