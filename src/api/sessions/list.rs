//! `GET /sessions`.

use axum::extract::State;
use axum::{Extension, Json};

use crate::api::auth::Caller;
use crate::api::problem::ApiResult;
use crate::api::sessions::reaches;
use crate::api::state::ApiState;
use crate::db;
use crate::wire::problem::Problem;
use crate::wire::session::Sessions;

/// Sessions within the caller's rights that are open, oldest first. Those that have ended are in the trail.
#[utoipa::path(get, path = "/sessions", tag = "sessions",
    responses((status = 200, body = Sessions), (status = 401, body = Problem)))]
pub(in crate::api) async fn list_sessions(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Json<Sessions>> {
    let mut sessions = Vec::new();
    for row in db::sessions::list(&state.pool).await? {
        if reaches(&caller, &row)? {
            sessions.push(row.to_wire());
        }
    }
    Ok(Json(Sessions { sessions }))
}
