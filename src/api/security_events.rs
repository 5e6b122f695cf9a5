//! Security events, and who was told of them. `routes` is the one place that says who may read them.

use axum::Json;
use axum::extract::State;

use crate::api::extract::Query;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::db;
use crate::wire::problem::Problem;
use crate::wire::security_event::{ListedSecurityEvent, SecurityEventFilter, SecurityEventPage};

/// What somebody should hear of, the latest first, with the webhooks that were told of it.
#[utoipa::path(get, path = "/security-events", tag = "audit", params(SecurityEventFilter),
    responses((status = 200, body = SecurityEventPage), (status = 401, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn list_security_events(
    State(state): State<ApiState>,
    Query(asked): Query<SecurityEventFilter>,
) -> ApiResult<Json<SecurityEventPage>> {
    let limit = asked.limit.unwrap_or(100);
    if !(1..=500).contains(&limit) {
        return Err(ApiError::invalid("limit is 1 to 500"));
    }
    if asked.cursor.is_some_and(|cursor| i64::try_from(cursor).is_err()) {
        return Err(ApiError::invalid("cursor is the next of a page before"));
    }
    let mut connection = state.pool.acquire().await?;
    let rows = db::security_events::list(&mut *connection, &asked, i64::from(limit)).await?;
    let full = rows.len() == limit as usize;
    let next = rows.last().filter(|_| full).map(|last| last.ordinal.unsigned_abs());
    let ordinals: Vec<i64> = rows.iter().map(|row| row.ordinal).collect();
    let mut deliveries = db::webhook_deliveries::of_events(&mut *connection, &ordinals).await?;
    let mut events = Vec::with_capacity(rows.len());
    for row in rows {
        let deliveries = deliveries.remove(&row.ordinal).unwrap_or_default();
        events.push(ListedSecurityEvent { event: row.into_wire()?, deliveries });
    }
    Ok(Json(SecurityEventPage { events, next }))
}
