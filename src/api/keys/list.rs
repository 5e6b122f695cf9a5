//! `GET /keys` and `GET /keys/{id}`.

use axum::extract::State;
use axum::{Extension, Json};

use crate::api::auth::Caller;
use crate::api::extract::Path;
use crate::api::keys::{no_such_key, reaches};
use crate::api::problem::ApiResult;
use crate::api::state::ApiState;
use crate::db;
use crate::wire::key::{Key, Keys};
use crate::wire::problem::Problem;

/// Keys within the caller's rights, oldest first, with those that are revoked.
#[utoipa::path(get, path = "/keys", tag = "keys",
    responses((status = 200, body = Keys), (status = 401, body = Problem)))]
pub(in crate::api) async fn list_keys(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Json<Keys>> {
    let mut keys = Vec::new();
    for row in db::keys::list(&state.pool).await? {
        if reaches(&caller, &row)? {
            keys.push(row.to_wire());
        }
    }
    Ok(Json(Keys { keys }))
}

/// One key.
#[utoipa::path(get, path = "/keys/{id}", tag = "keys", params(("id" = String, Path)),
    responses((status = 200, body = Key), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(in crate::api) async fn get_key(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> ApiResult<Json<Key>> {
    let row = db::keys::find(&state.pool, &id).await?.ok_or_else(no_such_key)?;
    if reaches(&caller, &row)? { Ok(Json(row.to_wire())) } else { Err(no_such_key()) }
}
