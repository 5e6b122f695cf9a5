//! Who calls: an API key in `X-API-Key`.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use subtle::ConstantTimeEq;

use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::db;
use crate::domain::api_key;
use crate::domain::audit::Actor;

/// The holder of a valid key.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub key_id: String,
}

impl Caller {
    pub fn actor(&self) -> Actor {
        Actor::Key(self.key_id.clone())
    }
}

pub(super) async fn require_key(
    State(state): State<ApiState>,
    mut request: Request,
    next: Next,
) -> ApiResult<Response> {
    let header = request.headers().get("x-api-key").ok_or_else(ApiError::key_missing)?;
    let shown = header.to_str().ok().and_then(api_key::parse).ok_or_else(ApiError::key_unknown)?;
    let stored = db::keys::active_hash(&state.pool, &shown.id).await?.ok_or_else(ApiError::key_unknown)?;
    if !bool::from(stored.as_slice().ct_eq(&shown.secret_sha256)) {
        return Err(ApiError::key_unknown());
    }
    db::keys::touch(&state.pool, &shown.id).await?;
    request.extensions_mut().insert(Caller { key_id: shown.id });
    Ok(next.run(request).await)
}
