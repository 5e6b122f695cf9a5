//! `/api/v1/keys`. A key that manages others sees, makes and changes those alone that have no more than it has itself.

pub(super) mod create;
pub(super) mod list;
pub(super) mod own;
pub(super) mod revoke;
pub(super) mod rotate;

use crate::api::auth::Caller;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::state::ApiState;
use crate::db;
use crate::db::keys::KeyRow;

/// Whether a key is within the caller's rights. One that has quotas reaches only keys that count against them too:
/// else it would gain another's.
fn reaches(caller: &Caller, key: &KeyRow) -> ApiResult<bool> {
    let within = caller.rights.cover(&key.rights()?).is_ok();
    Ok(within && caller.charged.iter().all(|charged| key.charged.contains(charged)))
}

fn no_such_key() -> ApiError {
    ApiError::not_found("API key")
}

/// Open streams of the key hear of it; should this fail, they find out within a second.
async fn changed(state: &ApiState, id: &str) {
    if let Err(error) = db::notify::send(&state.pool, db::notify::KEYS, id).await {
        tracing::warn!(%error, "api.notify_failed");
    }
    state.bearers.look();
}
