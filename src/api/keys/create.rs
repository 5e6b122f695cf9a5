//! `POST /keys`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use chrono::Utc;
use secrecy::ExposeSecret;
use serde_json::json;

use crate::api::auth::Caller;
use crate::api::extract::Json as Body;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::db;
use crate::domain::api_key;
use crate::wire::key::{NewKey, ShownKey};
use crate::wire::problem::Problem;

/// Makes a key. No scope, limit, quota or end of it may go beyond the maker's; what it uses counts against the maker's
/// quotas too. The secret is in this answer alone.
#[utoipa::path(post, path = "/keys", tag = "keys", request_body = NewKey,
    responses((status = 201, body = ShownKey), (status = 400, body = Problem), (status = 401, body = Problem),
              (status = 403, body = Problem, description = "The caller's key has not the scope, or less than it asks for"),
              (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, body = Problem)))]
pub(in crate::api) async fn create_key(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<NewKey>,
) -> ApiResult<(StatusCode, Json<ShownKey>)> {
    let rights = request.rights().map_err(ApiError::invalid)?;
    if rights.expires_at.is_some_and(|end| end <= Utc::now()) {
        return Err(ApiError::invalid("expires_at: in the future"));
    }
    caller.rights.cover(&rights).map_err(|exceeds| {
        ApiError::forbidden(format!(
            "a key grants no more than it has itself; this goes beyond it in {exceeds}"
        ))
    })?;
    let (key, shown) = api_key::generate();
    let new = db::keys::NewKey {
        id: &key.id,
        name: &request.name,
        secret_sha256: &key.secret_sha256,
        rights: &rights,
        charged: &caller.charged,
        made_by: &caller.key_id,
    };
    let mut transaction = caller.begin(&state).await?;
    let row = db::keys::insert(&mut transaction, &new).await?;
    let entry = caller.did("key.create", format!("key:{}", key.id), json!({ "asked": request }));
    db::audit::append(&mut transaction, &entry).await?;
    transaction.commit().await?;
    let shown = ShownKey { shown: row.to_wire(), key: shown.expose_secret().to_owned() };
    Ok((StatusCode::CREATED, Json(shown)))
}
