//! `DELETE /sessions/{id}`.

use axum::extract::State;
use axum::{Extension, Json};
use serde_json::json;

use crate::api::auth::Caller;
use crate::api::extract::Path;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::sessions::{changed, reaches};
use crate::api::state::ApiState;
use crate::db;
use crate::db::sessions::Ended;
use crate::wire::problem::Problem;
use crate::wire::session::Session;

/// Revokes a session: the next request with it is refused, and its open streams end. Its tasks go on.
#[utoipa::path(delete, path = "/sessions/{id}", tag = "sessions", params(("id" = String, Path)),
    responses((status = 200, body = Session), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(in crate::api) async fn revoke_session(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> ApiResult<Json<Session>> {
    let none = || ApiError::not_found("session that is open");
    let mut transaction = caller.begin_alone(&state).await?;
    let row = db::sessions::lock(&mut transaction, &id).await?.ok_or_else(none)?;
    if !reaches(&caller, &row)? || !db::sessions::end(&mut transaction, &id, Ended::Revoked).await? {
        return Err(none());
    }
    let details = json!({ "of": row.identity()?.to_string(), "name": row.name });
    let entry = caller.did("session.revoke", format!("session:{id}"), details);
    db::audit::append(&mut transaction, &entry).await?;
    transaction.commit().await?;
    changed(&state, &id).await;
    Ok(Json(row.to_wire()))
}
