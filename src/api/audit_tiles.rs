//! The log as C2SP tlog-tiles has it, below `/audit`: `checkpoint` is in `audit`, tiles and entry bundles are here.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::api::audit::last;
use crate::api::extract::Path;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::db;
use crate::db::trail_tiles::Content;
use crate::trail::bundle::Resource;
use crate::wire::problem::Problem;

/// Hashes (`LEVEL/INDEX`) or entries (`entries/INDEX`) of the log, in tiles of 256 (C2SP tlog-tiles); of the last tile, `.p/WIDTH`
/// behind it says how many.
#[utoipa::path(get, path = "/audit/tile/{*path}", tag = "audit",
    params(("path" = String, Path, description = "Such as `0/000`, `0/x001/234.p/17`, `entries/000`")),
    responses((status = 200, content_type = "application/octet-stream", body = [u8]), (status = 401, body = Problem),
              (status = 404, body = Problem, description = "No tile, or one that the log has not grown to")))]
pub(super) async fn audit_tile(
    State(state): State<ApiState>,
    Path(path): Path<String>,
) -> ApiResult<Response> {
    let parsed = Resource::parse(&format!("tile/{path}"));
    let (resource, width) = parsed.map_err(|_| ApiError::not_found("tile"))?;
    let mut connection = state.pool.acquire().await?;
    let (checkpoint, _) = last(&mut connection).await?;
    match db::trail_tiles::content(&mut connection, checkpoint.size, resource, width).await? {
        Content::Bytes(bytes) => {
            // What is below a checkpoint never changes. The answer is for its caller alone.
            let headers = [
                (header::CONTENT_TYPE, "application/octet-stream"),
                (header::CONTENT_DISPOSITION, "attachment; filename=\"tile\""),
                (header::CACHE_CONTROL, "private, max-age=31536000, immutable"),
            ];
            Ok((headers, bytes).into_response())
        }
        Content::None => Err(ApiError::not_found("tile")),
        Content::TooLong(index) => Err(ApiError::not_found(&format!(
            "bundle: entry {index} does not fit into one; take /audit/export"
        ))),
    }
}
