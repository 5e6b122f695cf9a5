//! The audit trail. `routes` is the one place that says who may read it.

use std::net::IpAddr;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::Stream;
use ipnet::IpNet;

use crate::api::auth::Caller;
use crate::api::extract::{Path, Query};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::db;
use crate::db::error::DbError;
use crate::db::trail::{Filter, Placed};
use crate::db::trail_export::{self, Export, ExportError, Form};
use crate::trail::canonical;
use crate::trail::checkpoint::Checkpoint;
use crate::trail::error::TrailError;
use crate::trail::note::Note;
use crate::trail::tree::leaf_hash;
use crate::wire::audit::{AuditEntry, AuditExport, AuditFilter, AuditPage, AuditProof};
use crate::wire::problem::Problem;

/// Sizes are `bigint` in the database.
const END: u64 = i64::MAX as u64;

impl From<ExportError> for ApiError {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::Database(error) => error.into(),
            ExportError::Trail(error) => broken(&error),
        }
    }
}

/// A log that is not what it was is a server's failure, which its log tells.
fn broken(error: &TrailError) -> ApiError {
    DbError::inconsistent("audit_leaves", "hash", "trail", error).into()
}

fn to_wire(placed: &Placed) -> ApiResult<AuditEntry> {
    let leaf = trail_export::leaf(placed).map_err(|error| broken(&error))?;
    let entry = canonical::parse(&leaf).map_err(|error| broken(&error))?;
    let hash = placed.hash()?;
    let as_recorded = leaf_hash(&leaf) == hash;
    if !as_recorded {
        tracing::error!(index = placed.index, "api.audit_entry_is_not_as_recorded");
    }
    Ok(AuditEntry { index: placed.index.unsigned_abs(), hash: hex::encode(hash), as_recorded, entry })
}

fn network(text: &str) -> ApiResult<IpNet> {
    let one = text.parse().map(|address: IpAddr| IpNet::from(address.to_canonical()));
    let network = one.or_else(|_| text.parse().map(|network: IpNet| network.trunc()));
    network.map_err(|_| ApiError::invalid("address is an address, or a network such as 192.0.2.0/24"))
}

/// Entries in the order of the log, as soon as they have their place in it (within a second).
#[utoipa::path(get, path = "/audit", tag = "audit", params(AuditFilter),
    responses((status = 200, body = AuditPage), (status = 401, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn list_audit(
    State(state): State<ApiState>,
    Query(asked): Query<AuditFilter>,
) -> ApiResult<Json<AuditPage>> {
    let limit = asked.limit.unwrap_or(100);
    if !(1..=500).contains(&limit) {
        return Err(ApiError::invalid("limit is 1 to 500"));
    }
    let first = asked.cursor.unwrap_or(0);
    if first > END {
        return Err(ApiError::invalid("cursor is the next of a page before"));
    }
    let filter = Filter {
        action: asked.action,
        object: asked.object,
        actor: asked.actor,
        outcome: asked.outcome,
        since: asked.since,
        until: asked.until,
        task: asked.task,
        request: asked.request_id,
        address: asked.address.as_deref().map(network).transpose()?,
        route: asked.route,
    };
    let mut connection = state.pool.acquire().await?;
    let placed = db::trail::placed(&mut connection, &filter, (first, END), i64::from(limit)).await?;
    let full = placed.len() == limit as usize;
    let next = placed.last().filter(|_| full).map(|last| last.index.unsigned_abs() + 1);
    let entries = placed.iter().map(to_wire).collect::<ApiResult<_>>()?;
    Ok(Json(AuditPage { entries, next }))
}

/// The last checkpoint: its note, and what it says.
pub(super) async fn last(connection: &mut sqlx::PgConnection) -> ApiResult<(Checkpoint, String)> {
    let note = db::trail::note(connection, None).await?;
    let note = note.ok_or_else(|| ApiError::not_found("checkpoint: nothing has been sequenced yet"))?;
    let read = Note::parse(&note).and_then(|note| Checkpoint::parse(&note.text));
    Ok((read.map_err(|error| broken(&error))?, note))
}

/// One entry with the proof that the last checkpoint has it. Verify with the log's public key, which does not come from here.
#[utoipa::path(get, path = "/audit/{index}/proof", tag = "audit", params(("index" = u64, Path)),
    responses((status = 200, body = AuditProof), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn prove_audit(
    State(state): State<ApiState>,
    Path(index): Path<u64>,
) -> ApiResult<Json<AuditProof>> {
    let mut connection = state.pool.acquire().await?;
    let (checkpoint, note) = last(&mut connection).await?;
    if index >= checkpoint.size {
        return Err(ApiError::not_found("audit entry"));
    }
    let placed = db::trail::placed(&mut connection, &Filter::default(), (index, index + 1), 1).await?;
    let placed = placed.first().ok_or_else(|| ApiError::not_found("audit entry"))?;
    let proof = trail_export::proof(&mut connection, index, checkpoint.size).await?;
    let proof = proof.iter().map(hex::encode).collect();
    let entry = to_wire(placed)?;
    if !entry.as_recorded {
        return Err(broken(&trail_export::changed(placed)));
    }
    Ok(Json(AuditProof { entry, proof, checkpoint: note }))
}

/// The last checkpoint, a signed note (C2SP tlog-checkpoint), with the signatures of its witnesses.
#[utoipa::path(get, path = "/audit/checkpoint", tag = "audit",
    responses((status = 200, content_type = "text/plain", body = String), (status = 401, body = Problem),
              (status = 404, body = Problem)))]
pub(super) async fn audit_checkpoint(State(state): State<ApiState>) -> ApiResult<Response> {
    let mut connection = state.pool.acquire().await?;
    let (checkpoint, note) = last(&mut connection).await?;
    let lines = db::trail::cosignatures(&mut connection, checkpoint.size).await?;
    let note = lines.into_iter().fold(note, |note, line| note + &line + "\n");
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"checkpoint\""),
    ];
    Ok((headers, note).into_response())
}

/// The log as of its last checkpoint, a line an entry. `jsonl` is verified by `kage audit verify --export`.
#[utoipa::path(get, path = "/audit/export", tag = "audit", params(AuditExport),
    responses((status = 200, content_type = "application/x-ndjson", body = String), (status = 401, body = Problem),
              (status = 404, body = Problem), (status = 422, body = Problem)))]
pub(super) async fn export_audit(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Query(asked): Query<AuditExport>,
) -> ApiResult<Response> {
    let partial = asked.since.is_some() || asked.until.is_some() || asked.task.is_some();
    let form = match asked.format.as_deref() {
        Some("ocsf") => Form::Ocsf,
        Some("jsonl") | None if partial => Form::Part,
        Some("jsonl") | None => Form::Whole,
        Some(_) => return Err(ApiError::invalid("format is jsonl or ocsf")),
    };
    let mut connection = state.pool.acquire().await?;
    let (checkpoint, note) = last(&mut connection).await?;
    drop(connection);
    let filter = Filter { since: asked.since, until: asked.until, task: asked.task, ..Filter::default() };
    let export = Export::new(checkpoint, note, filter, form);
    let mut response = Body::from_stream(pages(state.pool.clone(), caller, export)).into_response();
    let ndjson = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, ndjson);
    let name = HeaderValue::from_static("attachment; filename=\"audit.jsonl\"");
    response.headers_mut().insert(header::CONTENT_DISPOSITION, name);
    Ok(response)
}

/// A connection for each page, and none while the client reads. An error breaks the answer off, which its verifier sees;
/// so does the end of the caller's key or session.
fn pages(
    pool: sqlx::PgPool,
    caller: Caller,
    mut export: Export,
) -> impl Stream<Item = Result<Bytes, axum::BoxError>> {
    async_stream::try_stream! {
        loop {
            let mut connection = pool.acquire().await?;
            let page = export.page(&mut connection).await?;
            // After the page was read: what is sent was read while the caller might.
            let taken = db::keys::is_taken(&mut connection, &caller.bearer).await?;
            drop(connection);
            if !taken {
                tracing::info!(key = caller.bearer.key_id, "api.export_of_a_key_ends");
                Err(caller.ended())?;
            }
            let Some(lines) = page else { break };
            yield Bytes::from(lines);
        }
    }
}
