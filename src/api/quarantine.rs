//! What of a repository's own CLI configuration runs may see: what runners found, and what of it is approved.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde_json::json;
use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::extract::{Json as Body, Path};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::db;
use crate::db::quarantine::{ApprovalRow, ConfigurationRow};
use crate::domain::audit::Asked;
use crate::wire::problem::Problem;
use crate::wire::quarantine::{Approval, Approvals, Configurations, NewApproval};

fn entry(caller: &Caller, action: &'static str, name: &str, approval: &ApprovalRow) -> Asked {
    let details = json!({ "approval": approval.id, "path": approval.path, "digest": approval.digest });
    caller.did(action, format!("repository:{name}"), details)
}

async fn registered(state: &ApiState, caller: &Caller, name: &str) -> ApiResult<()> {
    let row = db::repositories::read(&state.pool, &caller.visible, name).await?;
    row.map(drop).ok_or_else(|| ApiError::not_found("repository"))
}

/// Files that a CLI would obey before its first prompt, as fetches and runs found them. Runs see those alone whose very
/// content is approved.
#[utoipa::path(get, path = "/repositories/{name}/configuration", tag = "repositories",
    params(("name" = String, Path)),
    responses((status = 200, body = Configurations), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn list_configuration(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> ApiResult<Json<Configurations>> {
    registered(&state, &caller, &name).await?;
    let rows = db::quarantine::list(&state.pool, &caller.visible, &name).await?;
    Ok(Json(Configurations { configuration: rows.into_iter().map(ConfigurationRow::into_wire).collect() }))
}

/// What is approved.
#[utoipa::path(get, path = "/repositories/{name}/approvals", tag = "repositories",
    params(("name" = String, Path)),
    responses((status = 200, body = Approvals), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn list_approvals(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> ApiResult<Json<Approvals>> {
    registered(&state, &caller, &name).await?;
    let rows = db::quarantine::approvals(&state.pool, &caller.visible, &name).await?;
    Ok(Json(Approvals { approvals: rows.into_iter().map(ApprovalRow::into_wire).collect() }))
}

/// Lets runs see one content at one path, from now on. Another content there is hidden again.
#[utoipa::path(post, path = "/repositories/{name}/approvals", tag = "repositories",
    params(("name" = String, Path)), request_body = NewApproval,
    responses((status = 200, body = Approval, description = "It was approved before"), (status = 201, body = Approval),
              (status = 400, body = Problem), (status = 401, body = Problem), (status = 404, body = Problem),
              (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn approve_configuration(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Body(new): Body<NewApproval>,
) -> ApiResult<(StatusCode, Json<Approval>)> {
    if [&new.path, &new.digest].iter().any(|text| text.contains('\0')) {
        return Err(ApiError::invalid("path and digest cannot contain NUL"));
    }
    let mut transaction = caller.begin(&state).await?;
    let row = db::repositories::find(&mut transaction, &caller.visible, &name).await?;
    row.ok_or_else(|| ApiError::not_found("repository"))?;
    let actor = caller.actor();
    let by = actor.id().unwrap_or(actor.kind().into());
    let by = by.as_ref();
    let made =
        db::quarantine::approve(&mut transaction, &caller.visible, &name, &new.path, &new.digest, by).await?;
    let (row, is_new) = made.ok_or_else(|| {
        ApiError::invalid(
            "no fetch and no run has found this path with this digest, or it cannot be approved; \
             GET …/configuration lists what can",
        )
    })?;
    if is_new {
        db::audit::append(&mut transaction, &entry(&caller, "repository.approve", &name, &row)).await?;
    }
    transaction.commit().await?;
    Ok((if is_new { StatusCode::CREATED } else { StatusCode::OK }, Json(row.into_wire())))
}

/// Takes an approval back. Runs that have begun keep what they see.
#[utoipa::path(delete, path = "/repositories/{name}/approvals/{id}", tag = "repositories",
    params(("name" = String, Path), ("id" = Uuid, Path)),
    responses((status = 200, body = Approval, description = "What was taken back"), (status = 401, body = Problem),
              (status = 404, body = Problem)))]
pub(super) async fn revoke_approval(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path((name, id)): Path<(String, Uuid)>,
) -> ApiResult<Json<Approval>> {
    let mut transaction = caller.begin(&state).await?;
    let row = db::quarantine::revoke(&mut transaction, &caller.visible, &name, id).await?;
    let row = row.ok_or_else(|| ApiError::not_found("approval"))?;
    db::audit::append(&mut transaction, &entry(&caller, "repository.revoke", &name, &row)).await?;
    transaction.commit().await?;
    Ok(Json(row.into_wire()))
}
