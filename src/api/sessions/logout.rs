//! `POST /auth/logout`.

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::api::auth::Caller;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::sessions::cookie::{self, Cookie};
use crate::api::sessions::{changed, sign_in as configured};
use crate::api::state::ApiState;
use crate::db;
use crate::db::sessions::Ended;
use crate::wire::problem::Problem;
use crate::wire::session::SignedOut;

/// Ends the session that asks. The provider's own session goes on until the browser goes to `end_session_url`.
#[utoipa::path(post, path = "/auth/logout", tag = "sessions",
    responses((status = 200, body = SignedOut), (status = 401, body = Problem), (status = 403, body = Problem),
              (status = 404, body = Problem, description = "It is a key that asks")))]
pub(in crate::api) async fn sign_out(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Response> {
    let signed_in = caller.signed_in.as_ref().ok_or_else(|| ApiError::not_found("session: a key asks"))?;
    let sign_in = configured(&state)?;
    let id = &signed_in.row.id;
    let mut transaction = state.pool.begin().await?;
    if db::sessions::end(&mut transaction, id, Ended::SignedOut).await? {
        let entry = caller.did("session.end", format!("session:{id}"), json!({}));
        db::audit::append(&mut transaction, &entry).await?;
    }
    transaction.commit().await?;
    changed(&state, id).await;
    // Out one is in any case.
    let url = sign_in.party.end_session_url().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "api.end_session_unknown");
        None
    });
    let mut response = Json(SignedOut { end_session_url: url.map(String::from) }).into_response();
    cookie::clear(&sign_in, &mut response, Cookie::Session);
    Ok(response)
}
