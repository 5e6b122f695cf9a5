//! `GET /keys/self`.

use axum::extract::State;
use axum::{Extension, Json};

use crate::api::auth::Caller;
use crate::api::keys::no_such_key;
use crate::api::problem::ApiResult;
use crate::api::state::ApiState;
use crate::db;
use crate::wire::key::{OwnKey, Used};
use crate::wire::problem::Problem;

/// Who am I: the key that asks, what it may do, and what it has used today.
#[utoipa::path(get, path = "/keys/self", tag = "keys",
    responses((status = 200, body = OwnKey), (status = 401, body = Problem)))]
pub(in crate::api) async fn own_key(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Json<OwnKey>> {
    let row = db::keys::find(&state.pool, &caller.key_id).await?.ok_or_else(no_such_key)?;
    Ok(Json(OwnKey { key: row.to_wire(), used: used(&state, &caller).await? }))
}

/// What the caller has used of its quotas; `None`: it has none.
pub(in crate::api) async fn used(state: &ApiState, caller: &Caller) -> ApiResult<Option<Used>> {
    if caller.rights.quotas.is_unlimited() {
        return Ok(None);
    }
    let (runs, micros, at_work) = db::quotas::used(&state.pool, &caller.key_id).await?;
    Ok(Some(Used {
        runs_at_work: at_work.unsigned_abs(),
        runs_today: runs.unsigned_abs(),
        usd_today: micros as f64 / 1e6,
    }))
}
