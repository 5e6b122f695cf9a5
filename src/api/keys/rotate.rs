//! `POST /keys/{id}/rotate`.

use axum::extract::State;
use axum::{Extension, Json};
use secrecy::ExposeSecret;
use serde_json::json;

use crate::api::auth::Caller;
use crate::api::extract::{Json as Body, Path};
use crate::api::keys::{changed, no_such_key, reaches};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::db;
use crate::domain::api_key;
use crate::wire::key::{DEFAULT_OVERLAP_SECS, MAX_OVERLAP_SECS, Rotation, ShownKey};
use crate::wire::problem::Problem;

/// Gives a key another secret. The present one is taken until the overlap ends; one before that is no longer.
#[utoipa::path(post, path = "/keys/{id}/rotate", tag = "keys", params(("id" = String, Path)), request_body = Rotation,
    responses((status = 200, body = ShownKey), (status = 400, body = Problem), (status = 401, body = Problem),
              (status = 404, body = Problem), (status = 409, body = Problem, description = "It is revoked or has expired"),
              (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, body = Problem)))]
pub(in crate::api) async fn rotate_key(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Body(request): Body<Rotation>,
) -> ApiResult<Json<ShownKey>> {
    let overlap = request.overlap_secs.unwrap_or(DEFAULT_OVERLAP_SECS);
    if overlap > MAX_OVERLAP_SECS {
        return Err(ApiError::invalid(format!("overlap_secs: 0 to {MAX_OVERLAP_SECS}")));
    }
    let mut transaction = caller.begin_alone(&state).await?;
    let row = db::keys::lock(&mut transaction, &id).await?.ok_or_else(no_such_key)?;
    if !reaches(&caller, &row)? {
        return Err(no_such_key());
    }
    let (secret_sha256, shown) = api_key::renew(&id);
    let rotated = db::keys::rotate(&mut transaction, &id, &secret_sha256, overlap).await?;
    let row = rotated.ok_or_else(|| ApiError::conflict("the key is revoked or has expired"))?;
    let details = json!({ "name": row.name, "overlap_secs": overlap });
    db::audit::append(&mut transaction, &caller.did("key.rotate", format!("key:{id}"), details)).await?;
    transaction.commit().await?;
    changed(&state, &id).await;
    Ok(Json(ShownKey { shown: row.to_wire(), key: shown.expose_secret().to_owned() }))
}
