//! `GET /session`.

use axum::extract::State;
use axum::{Extension, Json};
use secrecy::ExposeSecret;

use crate::api::auth::Caller;
use crate::api::keys::own::used;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::wire::problem::Problem;
use crate::wire::session::OwnSession;

/// Who am I: the session that asks, what it may do and until when, and the token for its writes.
#[utoipa::path(get, path = "/session", tag = "sessions",
    responses((status = 200, body = OwnSession), (status = 401, body = Problem),
              (status = 404, body = Problem, description = "It is a key that asks: GET /keys/self")))]
pub(in crate::api) async fn own_session(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Json<OwnSession>> {
    let signed_in = caller.signed_in.as_ref().ok_or_else(|| ApiError::not_found("session: a key asks"))?;
    let used = used(&state, &caller).await?;
    let csrf_token = signed_in.csrf.expose_secret().to_owned();
    Ok(Json(OwnSession { session: signed_in.row.to_wire(), csrf_token, used }))
}
