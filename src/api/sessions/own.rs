//! `GET /session`.

use axum::extract::State;
use axum::{Extension, Json};
use secrecy::ExposeSecret;

use crate::api::auth::Caller;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::db;
use crate::wire::key::Used;
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
    let used = if caller.rights.quotas.is_unlimited() {
        None
    } else {
        let (runs, micros, at_work) = db::quotas::used(&state.pool, &caller.key_id).await?;
        Some(Used {
            runs_at_work: at_work.unsigned_abs(),
            runs_today: runs.unsigned_abs(),
            usd_today: micros as f64 / 1e6,
        })
    };
    let csrf_token = signed_in.csrf.expose_secret().to_owned();
    Ok(Json(OwnSession { session: signed_in.row.to_wire(), csrf_token, used }))
}
