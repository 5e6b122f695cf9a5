//! People: `/auth/oidc/…`, `/auth/logout`, `/api/v1/session` and `/api/v1/sessions`. A session is held to the same scopes,
//! limits and quotas as a key; `docs/sign-in.md`.

pub(super) mod callback;
pub(super) mod cookie;
pub(super) mod csrf;
pub(super) mod list;
pub(super) mod login;
pub(super) mod logout;
pub(super) mod own;
mod return_to;
pub(super) mod revoke;
pub(super) mod shown;

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use secrecy::SecretString;

use crate::api::auth::Caller;
use crate::api::origin::Origin;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::refusals::Refusal;
use crate::api::state::ApiState;
use crate::config::api::ApiConfig;
use crate::config::oidc::OidcConfig;
use crate::db;
use crate::db::sessions::SessionRow;
use crate::domain::session::{CookieSecret, Use};
use crate::oidc::error::OidcError;
use crate::oidc::party::{Challenge, Options, RelyingParty};

/// What signing in takes.
#[derive(Debug)]
pub(super) struct SignIn {
    pub config: OidcConfig,
    pub party: RelyingParty,
}

impl SignIn {
    /// `None` where no provider is set.
    ///
    /// # Errors
    /// [`OidcError::Setup`].
    pub fn open(config: &ApiConfig) -> Result<Option<Arc<Self>>, OidcError> {
        let Some(config) = config.oidc.clone() else { return Ok(None) };
        let redirect_url = config.public_url.join("/auth/oidc/callback");
        let party = RelyingParty::new(Options {
            issuer: config.issuer.clone(),
            client_id: config.client_id.clone(),
            client_secret: config.client_secret.clone(),
            redirect_url: redirect_url.map_err(|error| OidcError::Setup(error.to_string()))?,
            scopes: config.scopes.clone(),
            claim: config.claim.clone(),
            ca: config.ca.clone(),
            plain_http: config.plain_http,
            within: config.within,
        })?;
        Ok(Some(Arc::new(Self { config, party })))
    }
}

/// # Errors
/// 404 where nobody signs in.
fn sign_in(state: &ApiState) -> ApiResult<Arc<SignIn>> {
    state.sign_in.clone().ok_or_else(|| ApiError::not_found("thing as sign-in: no OpenID provider is set"))
}

fn challenge(secret: &CookieSecret) -> Challenge {
    let text = |what| -> SecretString { secret.derive_text(what) };
    Challenge { state: text(Use::State), nonce: text(Use::Nonce), verifier: text(Use::Verifier) }
}

/// The provider's troubles, in words for a browser.
fn troubled(error: &OidcError) -> ApiError {
    tracing::warn!(%error, "api.sign_in_failed");
    let detail =
        "the OpenID provider cannot be asked now, or is not as it must be; the server's log says more";
    ApiError::sign_in(StatusCode::SERVICE_UNAVAILABLE, "sign-in-unavailable", detail)
}

/// Answers a refused sign-in, which the trail and the limit of failures hear of.
fn refused(
    state: &ApiState,
    origin: Origin,
    reason: &'static str,
    status: StatusCode,
    detail: &str,
) -> Response {
    if state.limits.failed(&origin) {
        state.alarms.repeated_failures(&origin);
    }
    state.refusals.note(Refusal { origin, who: None, reason });
    ApiError::sign_in(status, reason, detail).into_response()
}

/// Whether a session is within the caller's rights, as keys are.
fn reaches(caller: &Caller, row: &SessionRow) -> ApiResult<bool> {
    let mut rights = row.rights()?;
    // Ended it may be by whoever is there, how long that may be.
    rights.expires_at = caller.rights.expires_at;
    let charged = row.charged();
    let within = caller.rights.cover(&rights).is_ok();
    Ok(within && caller.charged.iter().all(|key| charged.contains(key)))
}

/// Its open streams hear of it; should this fail, they find out within a second.
async fn changed(state: &ApiState, id: &str) {
    if let Err(error) = db::notify::send(&state.pool, db::notify::KEYS, id).await {
        tracing::warn!(%error, "api.notify_failed");
    }
    state.bearers.look();
}
