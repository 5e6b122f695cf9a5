//! `POST /tasks`.

use std::collections::BTreeMap;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::api::auth::Caller;
use crate::api::extract::Json;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::api::tasks::get::load;
use crate::api::tasks::{check, queue, quota};
use crate::db;
use crate::db::budgets::Limits;
use crate::db::error::DbError;
use crate::db::repositories::RepositoryRow;
use crate::db::tasks::{NewRun, NewTask};
use crate::domain::repository::RepositoryState;
use crate::wire;
use crate::wire::problem::Problem;
use crate::wire::task::Task;

/// Repositories that a refusal names.
const NAMED: i64 = 100;

type Created = (StatusCode, HeaderMap, axum::Json<Task>);

/// Submits a task; its runs start as soon as a runner has room.
#[utoipa::path(post, path = "/tasks", tag = "tasks",
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key with the same body gives the same task")),
    request_body = wire::task::NewTask,
    responses((status = 201, body = Task), (status = 400, body = Problem), (status = 401, body = Problem),
              (status = 413, body = Problem), (status = 415, body = Problem), (status = 422, body = Problem),
              (status = 429, body = Problem, description = "A quota of the key's day is used up, or as many of its runs wait as may; Retry-After says when to come back"),
              (status = 503, body = Problem, description = "As many runs wait as may; Retry-After says when to come back")))]
pub(in crate::api) async fn submit_task(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Json(request): Json<wire::task::NewTask>,
) -> ApiResult<Created> {
    check::request(&request)?;
    let idempotency = idempotency_key(&headers)?.map(|key| {
        let body = serde_json::to_vec(&request).expect("plain struct");
        (key, Sha256::digest(&body).to_vec())
    });
    // A second round only if another request with the same key came in between.
    for last_round in [false, true] {
        match write(&state, &caller, &request, idempotency.as_ref()).await {
            Ok((id, replayed)) => return created(&state, &caller, id, replayed).await,
            Err(Refusal::Database(error)) if error.is_conflict() && idempotency.is_some() && !last_round => {}
            Err(Refusal::Database(error)) => return Err(error.into()),
            Err(Refusal::Request(error)) => return Err(error),
        }
    }
    Err(ApiError::busy("another request with this Idempotency-Key is under way"))
}

async fn created(state: &ApiState, caller: &Caller, id: Uuid, replayed: bool) -> ApiResult<Created> {
    if !replayed {
        // Should this fail, the runners' slow poll finds the task.
        if let Err(error) = db::notify::send(&state.pool, db::notify::QUEUE, "").await {
            tracing::warn!(%error, "api.notify_failed");
        }
    }
    let mut headers = HeaderMap::new();
    if let Ok(location) = HeaderValue::from_str(&format!("/api/v1/tasks/{id}")) {
        headers.insert(header::LOCATION, location);
    }
    if replayed {
        headers.insert(HeaderName::from_static("idempotent-replayed"), HeaderValue::from_static("true"));
    }
    Ok((StatusCode::CREATED, headers, axum::Json(load(state, caller, id).await?)))
}

pub(super) enum Refusal {
    Request(ApiError),
    Database(DbError),
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self::Request(error)
    }
}

impl From<DbError> for Refusal {
    fn from(error: DbError) -> Self {
        Self::Database(error)
    }
}

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error.into())
    }
}

/// Writes the task, its runs, their first events and the audit entry, all or none.
/// The flag says that the task was there already.
async fn write(
    state: &ApiState,
    caller: &Caller,
    request: &wire::task::NewTask,
    idempotency: Option<&(String, Vec<u8>)>,
) -> Result<(Uuid, bool), Refusal> {
    let mut transaction = caller.begin(state).await?;
    if let Some((key, sha256)) = idempotency
        && let Some((known, task)) = db::tasks::find_idempotent(&mut transaction, &caller.key_id, key).await?
    {
        if known == *sha256 {
            return Ok((task, true));
        }
        return Err(ApiError::invalid("this Idempotency-Key was used for another request").into());
    }
    let repository = repository(caller, &mut transaction, request.repository.as_deref()).await?;
    let base_commit = base_commit(&repository, request.base_revision.as_deref())?;
    let runs = runs(&mut transaction, caller, request).await?;
    let id = Uuid::now_v7();
    let details = json!({
        "repository": repository.name,
        "base_revision": request.base_revision,
        "base_commit": base_commit,
        "description_sha256": hex::encode(Sha256::digest(request.description.as_bytes())),
        "description_bytes": request.description.len(),
        "budget": request.budget,
        "runs": runs.iter().map(audited).collect::<Vec<_>>(),
    });
    let task = NewTask {
        id,
        request,
        repository: &repository.name,
        base_commit: base_commit.as_deref(),
        submitted_by: &caller.key_id,
        charged: &caller.charged,
        traceparent: caller.origin.traceparent.as_deref(),
        runs,
    };
    queue::check(&mut transaction, &state.config, caller, task.runs.len()).await?;
    quota::count(&mut transaction, caller, task.runs.len()).await?;
    db::tasks::insert(&mut transaction, &task).await?;
    budgets(&mut transaction, &task).await?;
    if let Some((key, sha256)) = idempotency {
        db::tasks::remember_idempotent(&mut transaction, &caller.key_id, key, sha256, id).await?;
    }
    let entry = caller.did("task.submit", format!("task:{id}"), details);
    db::audit::append(&mut transaction, &entry).await?;
    transaction.commit().await?;
    tracing::info!(task_id = %id, runs = task.runs.len(), "api.task_submitted");
    Ok((id, false))
}

fn idempotency_key(headers: &HeaderMap) -> ApiResult<Option<String>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let text = value.to_str().ok().filter(|text| (1..=255).contains(&text.len()));
    let text = text.ok_or_else(|| ApiError::invalid("Idempotency-Key: 1 to 255 visible ASCII characters"))?;
    Ok(Some(text.to_owned()))
}

fn audited(run: &NewRun<'_>) -> Value {
    json!({ "name": run.name, "image": run.image_digest, "model": run.assignment.model,
            "budget": run.assignment.budget })
}

/// The repository that is named, or the only one that there is.
async fn repository(
    caller: &Caller,
    connection: &mut PgConnection,
    name: Option<&str>,
) -> Result<RepositoryRow, Refusal> {
    let name = match name {
        Some(name) => name.to_owned(),
        None => {
            // On this connection: whoever waits for another one while it has this waits for those who do the same.
            let all = db::repositories::names(&mut *connection, &caller.visible, NAMED).await?;
            match all.as_slice() {
                [only] => only.clone(),
                [] => return Err(ApiError::invalid("no repository is registered; register one first").into()),
                several => {
                    let detail = format!("repository: name one of {}", several.join(", "));
                    return Err(ApiError::invalid(detail).into());
                }
            }
        }
    };
    let row = db::repositories::find(connection, &caller.visible, &name).await?;
    let row = row.filter(|row| row.state != RepositoryState::Removing.as_str());
    let row = row.ok_or_else(|| ApiError::invalid(format!("repository: there is none named {name:?}")))?;
    if row.fetched_at.is_none() {
        let why = row.error.as_deref().unwrap_or("its first fetch has not ended yet");
        return Err(ApiError::invalid(format!("repository {name:?} cannot be used yet: {why}")).into());
    }
    Ok(row)
}

/// The commit that a revision names as of the last fetch, so that all runs of a task start from the
/// same one. `None`: an abbreviated or bare commit id, which only the runner can look up, or an empty repository.
fn base_commit(repository: &RepositoryRow, revision: Option<&str>) -> Result<Option<String>, Refusal> {
    let refs: BTreeMap<String, String> = repository.refs()?;
    let Some(revision) = revision.or(repository.default_branch.as_deref()) else { return Ok(None) };
    if let Some(commit) = refs.get(revision) {
        return Ok(Some(commit.clone()));
    }
    if refs.is_empty() && repository.default_branch.as_deref() == Some(revision) {
        return Ok(None);
    }
    let looks_like_id =
        (4..=64).contains(&revision.len()) && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    if looks_like_id {
        return Ok(None);
    }
    let detail = format!(
        "base_revision: repository {:?} has no branch, tag or commit {revision:?} (as of its last fetch)",
        repository.name
    );
    Err(ApiError::invalid(detail).into())
}

/// One run an assignment. The second of the same CLI is named `-2`, and so on.
async fn runs<'a>(
    connection: &mut PgConnection,
    caller: &Caller,
    request: &'a wire::task::NewTask,
) -> Result<Vec<NewRun<'a>>, Refusal> {
    let mut count: BTreeMap<&str, usize> = BTreeMap::new();
    let runtimes = db::runners::runtimes(&mut *connection).await?;
    let mut runs = Vec::with_capacity(request.cli_assignments.len());
    for (index, assignment) in request.cli_assignments.iter().enumerate() {
        let cli = assignment.cli_name.as_str();
        let image = db::images::find(connection, cli).await?.filter(|_| caller.rights.sees_cli(cli));
        let image = image.ok_or_else(|| {
            ApiError::invalid(format!(
                "cli_assignments[{index}].cli_name: no CLI image {cli:?} is registered"
            ))
        })?;
        let nth = count.entry(cli).and_modify(|count| *count += 1).or_insert(1);
        let name = if *nth == 1 { cli.to_owned() } else { format!("{cli}-{nth}") };
        if runs.iter().any(|run: &NewRun<'_>| run.name == name) {
            let detail =
                format!("cli_assignments[{index}]: its run would be named {name:?}, as another one is");
            return Err(ApiError::invalid(detail).into());
        }
        check::assignment(index, request, &image.manifest)?;
        check::runtime(index, assignment, &image.manifest, &runtimes)?;
        let (image_digest, manifest) = (image.digest, image.manifest);
        runs.push(NewRun { id: Uuid::now_v7(), name, assignment, image_digest, manifest });
    }
    Ok(runs)
}

/// The task's budget and its runs' own, as far as they were given.
async fn budgets(connection: &mut PgConnection, task: &NewTask<'_>) -> Result<(), DbError> {
    let of_runs = task.runs.iter().map(|run| (Some(run.id), run.assignment.budget));
    for (run, budget) in [(None, task.request.budget)].into_iter().chain(of_runs) {
        if let Some(budget) = budget {
            db::budgets::create(connection, task.id, run, limits(budget)).await?;
        }
    }
    Ok(())
}

/// As the request was checked, neither overflows.
fn limits(budget: wire::task::Budget) -> Limits {
    Limits {
        micros: budget.usd.map(|usd| ((usd * 1e6).round() as i64).max(1)),
        tokens: budget.tokens.map(|tokens| i64::try_from(tokens).unwrap_or(i64::MAX)),
    }
}
