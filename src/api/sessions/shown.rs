//! The session whose cookie a request shows.

use std::sync::Arc;

use axum::http::HeaderMap;
use secrecy::SecretString;

use crate::api::auth::Caller;
use crate::api::origin::Origin;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::sessions::cookie::{self, Cookie};
use crate::api::state::ApiState;
use crate::db;
use crate::db::keys::Bearer;
use crate::db::sessions::SessionRow;
use crate::db::visible::Visible;
use crate::domain::person::Identity;
use crate::domain::session::Use;

/// Somebody who has signed in.
#[derive(Debug)]
pub(in crate::api) struct SignedIn {
    pub identity: Identity,
    pub row: SessionRow,
    /// What its writes show.
    pub csrf: SecretString,
}

/// `None` where no session is shown.
///
/// # Errors
/// 401 if it is none of ours, or has ended.
pub(in crate::api) async fn find(
    state: &ApiState,
    headers: &HeaderMap,
    origin: &Origin,
) -> ApiResult<Option<Caller>> {
    let Some(sign_in) = &state.sign_in else { return Ok(None) };
    if !cookie::is_shown(sign_in, headers, Cookie::Session) {
        return Ok(None);
    }
    let secret = cookie::read(sign_in, headers, Cookie::Session).ok_or_else(ApiError::session_ended)?;
    let secret_sha256 = secret.derive(Use::Session);
    let found = db::sessions::find_shown(&state.pool, &secret_sha256).await?;
    let (row, use_is_due) = found.ok_or_else(ApiError::session_ended)?;
    if use_is_due {
        db::sessions::touch(&state.pool, &row.id).await?;
    }
    let rights = row.rights()?;
    Ok(Some(Caller {
        visible: Visible::to(&rights),
        rights: Arc::new(rights),
        charged: row.charged(),
        bearer: Bearer { key_id: row.id.clone(), secret_sha256 },
        key_id: row.person_id.clone(),
        signed_in: Some(Arc::new(SignedIn {
            identity: row.identity()?,
            csrf: secret.derive_text(Use::Csrf),
            row,
        })),
        origin: origin.clone(),
    }))
}
