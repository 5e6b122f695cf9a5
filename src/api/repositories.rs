//! `/api/v1/repositories`. The API holds no repository: it writes down what is wished, a runner does it.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde_json::json;

use crate::api::auth::Caller;
use crate::api::extract::{Json as Body, Path};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::db;
use crate::domain::audit::Asked;
use crate::domain::name::Name;
use crate::domain::repository::RepositoryState;
use crate::wire::problem::Problem;
use crate::wire::repository::{NewRepository, Repositories, Repository};

fn entry(caller: &Caller, action: &'static str, name: &str, details: serde_json::Value) -> Asked {
    caller.did(action, format!("repository:{name}"), details)
}

async fn wake_runners(state: &ApiState) {
    if let Err(error) = db::notify::send(&state.pool, db::notify::QUEUE, "").await {
        tracing::warn!(%error, "api.notify_failed");
    }
}

/// Registers a repository; a runner fetches it. Ask for it again until its state is `ready` or `failed`.
#[utoipa::path(post, path = "/repositories", tag = "repositories", request_body = NewRepository,
    responses((status = 202, body = Repository), (status = 400, body = Problem), (status = 401, body = Problem),
              (status = 409, body = Problem), (status = 413, body = Problem), (status = 415, body = Problem),
              (status = 422, body = Problem)))]
pub(super) async fn register_repository(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Body(request): Body<NewRepository>,
) -> ApiResult<(StatusCode, Json<Repository>)> {
    let name: Name = request.name.parse().map_err(|problem| ApiError::invalid(format!("name: {problem}")))?;
    // Whoever names a source reads it: under a name of its own it would see what is out of its sight. Asked before
    // anything tells whether there is a repository of that name.
    if caller.rights.repositories.is_some() {
        return Err(ApiError::forbidden("an API key that is limited to repositories registers none"));
    }
    state
        .config
        .sources
        .check(&request.source)
        .map_err(|problem| ApiError::invalid(format!("source: {problem}")))?;
    let mut transaction = caller.begin(&state).await?;
    let row = match db::repositories::insert(&mut transaction, name.as_str(), &request.source).await {
        Ok(row) => row,
        Err(error) if error.is_conflict() => {
            return Err(ApiError::conflict(format!("a repository named {name} is registered already")));
        }
        Err(error) => return Err(error.into()),
    };
    let details = json!({ "source": request.source });
    db::audit::append(&mut transaction, &entry(&caller, "repository.register", name.as_str(), details))
        .await?;
    transaction.commit().await?;
    wake_runners(&state).await;
    Ok((StatusCode::ACCEPTED, Json(row.to_wire()?)))
}

/// All registered repositories that the key sees.
#[utoipa::path(get, path = "/repositories", tag = "repositories",
    responses((status = 200, body = Repositories), (status = 401, body = Problem)))]
pub(super) async fn list_repositories(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
) -> ApiResult<Json<Repositories>> {
    let rows = db::repositories::list(&state.pool, &caller.visible).await?;
    let repositories = rows.iter().map(db::repositories::RepositoryRow::to_wire).collect::<Result<_, _>>()?;
    Ok(Json(Repositories { repositories }))
}

/// One repository.
#[utoipa::path(get, path = "/repositories/{name}", tag = "repositories",
    params(("name" = String, Path)),
    responses((status = 200, body = Repository), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn get_repository(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> ApiResult<Json<Repository>> {
    let row = db::repositories::read(&state.pool, &caller.visible, &name).await?;
    Ok(Json(row.ok_or_else(|| ApiError::not_found("repository"))?.to_wire()?))
}

/// Fetches the repository anew. Tasks may go on with what was fetched before.
#[utoipa::path(post, path = "/repositories/{name}/fetch", tag = "repositories",
    params(("name" = String, Path)),
    responses((status = 202, body = Repository), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn fetch_repository(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> ApiResult<(StatusCode, Json<Repository>)> {
    let mut transaction = caller.begin(&state).await?;
    let row =
        db::repositories::wish(&mut transaction, &caller.visible, &name, RepositoryState::Pending).await?;
    let row = row.ok_or_else(|| ApiError::not_found("repository"))?;
    db::audit::append(&mut transaction, &entry(&caller, "repository.fetch", &name, json!({}))).await?;
    transaction.commit().await?;
    wake_runners(&state).await;
    Ok((StatusCode::ACCEPTED, Json(row.to_wire()?)))
}

/// Removes a repository with its branches, once no task works on it.
#[utoipa::path(delete, path = "/repositories/{name}", tag = "repositories",
    params(("name" = String, Path)),
    responses((status = 202, body = Repository), (status = 401, body = Problem), (status = 404, body = Problem),
              (status = 409, body = Problem, description = "Tasks work on it")))]
pub(super) async fn remove_repository(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> ApiResult<(StatusCode, Json<Repository>)> {
    let mut transaction = caller.begin(&state).await?;
    let row =
        db::repositories::wish(&mut transaction, &caller.visible, &name, RepositoryState::Removing).await?;
    let row = row.ok_or_else(|| ApiError::not_found("repository"))?;
    let unfinished = db::repositories::unfinished_tasks(&mut transaction, &caller.visible, &name).await?;
    if unfinished > 0 {
        return Err(ApiError::conflict(format!(
            "{unfinished} unfinished task(s) work on it; cancel or await them"
        )));
    }
    db::audit::append(&mut transaction, &entry(&caller, "repository.remove", &name, json!({}))).await?;
    transaction.commit().await?;
    wake_runners(&state).await;
    Ok((StatusCode::ACCEPTED, Json(row.to_wire()?)))
}
