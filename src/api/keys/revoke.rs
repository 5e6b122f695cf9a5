//! `DELETE /keys/{id}`.

use axum::extract::State;
use axum::{Extension, Json};
use serde_json::json;

use crate::api::auth::Caller;
use crate::api::extract::Path;
use crate::api::keys::{changed, no_such_key, reaches};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::db;
use crate::wire::key::Key;
use crate::wire::problem::Problem;

/// Revokes a key: the next request with it is refused, and its open streams end. Its tasks go on.
#[utoipa::path(delete, path = "/keys/{id}", tag = "keys", params(("id" = String, Path)),
    responses((status = 200, body = Key), (status = 401, body = Problem), (status = 404, body = Problem),
              (status = 409, body = Problem, description = "It is revoked already")))]
pub(in crate::api) async fn revoke_key(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> ApiResult<Json<Key>> {
    let mut transaction = caller.begin_alone(&state).await?;
    let row = db::keys::lock(&mut transaction, &id).await?.ok_or_else(no_such_key)?;
    if !reaches(&caller, &row)? {
        return Err(no_such_key());
    }
    if !db::keys::revoke(&mut transaction, &id).await? {
        return Err(ApiError::conflict("the key is revoked already"));
    }
    let entry = caller.did("key.revoke", format!("key:{id}"), json!({ "name": row.name }));
    db::audit::append(&mut transaction, &entry).await?;
    transaction.commit().await?;
    changed(&state, &id).await;
    let row = db::keys::find(&state.pool, &id).await?.ok_or_else(no_such_key)?;
    Ok(Json(row.to_wire()))
}
