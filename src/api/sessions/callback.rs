//! `GET /auth/oidc/callback`: a browser comes back from the provider.

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::json;
use subtle::ConstantTimeEq;
use utoipa::IntoParams;

use crate::api::extract::Query;
use crate::api::origin::Origin;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::sessions::cookie::{self, Cookie};
use crate::api::sessions::{SignIn, challenge, changed, refused, sign_in as configured, troubled};
use crate::api::state::ApiState;
use crate::db;
use crate::db::sessions::{Ended, NewSession};
use crate::domain::access::Rights;
use crate::domain::audit::{Actor, Entry, Outcome};
use crate::domain::session::{CookieSecret, Use};
use crate::oidc::error::OidcError;
use crate::oidc::party::Verified;
use crate::wire::problem::Problem;

/// What the provider has the browser say.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct Answer {
    #[param(pattern = r"^[^\x00]*$")]
    code: Option<String>,
    #[param(pattern = r"^[^\x00]*$")]
    state: Option<String>,
    /// RFC 9207.
    #[param(pattern = r"^[^\x00]*$")]
    iss: Option<String>,
    #[param(pattern = r"^[^\x00]*$")]
    error: Option<String>,
}

/// Why a sign-in comes to nothing.
enum Failure {
    /// Somebody, or something, is not as it must be.
    Refused(&'static str, StatusCode, &'static str),
    Error(ApiError),
}

impl<E: Into<ApiError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

impl Failure {
    fn of(error: &OidcError) -> Self {
        match error {
            OidcError::Refused(refusal) => {
                let detail = "what the OpenID provider answered is not to be believed; begin again";
                Self::Refused(refusal.reason(), StatusCode::FORBIDDEN, detail)
            }
            _ => Self::Error(troubled(error)),
        }
    }
}

/// Ends a sign-in that this browser has begun: with a session, or with the reason why not.
#[utoipa::path(get, path = "/auth/oidc/callback", tag = "sessions", params(Answer),
    responses((status = 303, description = "Signed in; to where the person wanted to go"),
              (status = 400, body = Problem, description = "This browser has not begun to sign in"),
              (status = 403, body = Problem, description = "Refused, or the person may do nothing here"),
              (status = 404, body = Problem, description = "Nobody signs in here"),
              (status = 422, body = Problem), (status = 503, body = Problem)))]
pub(in crate::api) async fn finish_sign_in(
    State(state): State<ApiState>,
    Extension(origin): Extension<Origin>,
    headers: HeaderMap,
    Query(answer): Query<Answer>,
) -> ApiResult<Response> {
    let sign_in = configured(&state)?;
    state.limits.may_authenticate(&origin)?;
    let mut response = match finish(&state, &sign_in, &origin, &headers, answer).await {
        Ok(response) => response,
        Err(Failure::Error(error)) => error.into_response(),
        Err(Failure::Refused(reason, status, detail)) => refused(&state, origin, reason, status, detail),
    };
    cookie::clear(&sign_in, &mut response, Cookie::SignIn);
    Ok(response)
}

async fn finish(
    state: &ApiState,
    sign_in: &SignIn,
    origin: &Origin,
    headers: &HeaderMap,
    answer: Answer,
) -> Result<Response, Failure> {
    let begin = "this browser has not begun to sign in, or long ago; begin at /auth/oidc/login";
    let bad = StatusCode::BAD_REQUEST;
    // Whose browser it is comes first: else somebody could sign others in as himself.
    let secret = cookie::read(sign_in, headers, Cookie::SignIn).ok_or(Failure::Refused(
        "sign-in-not-begun",
        bad,
        begin,
    ))?;
    let challenge = challenge(&secret);
    let shown = answer.state.unwrap_or_default();
    if !bool::from(shown.as_bytes().ct_eq(challenge.state.expose_secret().as_bytes())) {
        return Err(Failure::Refused(
            "sign-in-state",
            bad,
            "this answer belongs to no sign-in of this browser",
        ));
    }
    // From here on it is used up, whatever comes of it.
    let return_to = db::sign_ins::take(&state.pool, &secret.derive(Use::SignIn)).await?;
    let return_to = return_to.ok_or(Failure::Refused("sign-in-used", bad, begin))?;
    let checked = sign_in.party.check_answer_issuer(answer.iss.as_deref()).await;
    checked.map_err(|error| Failure::of(&error))?;
    if answer.error.is_some() {
        let detail = "the OpenID provider did not sign you in";
        return Err(Failure::Refused("sign-in-denied", StatusCode::FORBIDDEN, detail));
    }
    let code = answer.code.ok_or(Failure::Refused("sign-in-code", bad, "there is no code in this answer"))?;
    let verified = sign_in.party.redeem(code, &challenge).await.map_err(|error| Failure::of(&error))?;
    match sign_in.config.rights(&verified.values) {
        None => Ok(nothing_allowed(state, sign_in, origin, &verified).await?),
        Some(rights) => Ok(welcome(state, sign_in, origin, headers, &verified, rights, &return_to).await?),
    }
}

/// Known, and of no use here.
async fn nothing_allowed(
    state: &ApiState,
    sign_in: &SignIn,
    origin: &Origin,
    verified: &Verified,
) -> ApiResult<Response> {
    let reason = "sign-in-no-rights";
    let details = json!({ "reason": reason, "name": verified.name, "claim": sign_in.config.claim });
    let entry = origin.asked(Entry {
        actor: Actor::Person(verified.identity.clone()),
        action: "session.create",
        object: "session".to_owned(),
        outcome: Outcome::Refused,
        details,
    });
    let mut transaction = state.pool.begin().await?;
    db::audit::append(&mut transaction, &entry).await?;
    transaction.commit().await?;
    let detail = format!(
        "you are signed in at {} as {}, and may do nothing here: no value of your claim {:?} is known; ask who runs this \
         server",
        sign_in.config.issuer, verified.name, sign_in.config.claim
    );
    Ok(ApiError::sign_in(StatusCode::FORBIDDEN, reason, detail).into_response())
}

/// Makes the session. It is a new one in any case: none that was there before can be foisted on anybody.
async fn welcome(
    state: &ApiState,
    sign_in: &SignIn,
    origin: &Origin,
    headers: &HeaderMap,
    verified: &Verified,
    rights: &Rights,
    return_to: &str,
) -> ApiResult<Response> {
    let (config, secret) = (&sign_in.config, CookieSecret::generate());
    let before = match cookie::read(sign_in, headers, Cookie::Session) {
        None => None,
        Some(shown) => db::sessions::find_shown(&state.pool, &shown.derive(Use::Session)).await?,
    };
    let mut transaction = state.pool.begin().await?;
    let actor = Actor::Person(verified.identity.clone());
    let audited = |action, id: &str, details| {
        let (object, outcome) = (format!("session:{id}"), Outcome::Done);
        origin.asked(Entry { actor: actor.clone(), action, object, outcome, details })
    };
    let mut replaced = None;
    if let Some((row, _)) = before
        && db::sessions::end(&mut transaction, &row.id, Ended::Replaced).await?
    {
        let details = json!({ "of": row.identity()?.to_string() });
        db::audit::append(&mut transaction, &audited("session.replace", &row.id, details)).await?;
        replaced = Some(row.id);
    }
    let person =
        db::sessions::person(&mut transaction, &verified.identity, &verified.name, rights.quotas).await?;
    let new = NewSession {
        secret_sha256: &secret.derive(Use::Session),
        person_id: &person,
        name: &verified.name,
        rights,
        idle_secs: config.idle_secs,
        absolute_secs: config.session_secs,
    };
    let id = db::sessions::insert(&mut transaction, &new).await?;
    let details = json!({
        "name": verified.name, "person": person, "scopes": rights.scopes,
        "repositories": rights.repositories, "clis": rights.clis, "secs": config.session_secs,
    });
    db::audit::append(&mut transaction, &audited("session.create", &id, details)).await?;
    transaction.commit().await?;
    if let Some(replaced) = replaced {
        changed(state, &replaced).await;
    }
    tracing::info!(session = id, person, "api.signed_in");
    let location = HeaderValue::from_str(return_to).unwrap_or(HeaderValue::from_static("/"));
    let mut response = (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response();
    cookie::set(sign_in, &mut response, Cookie::Session, &secret, config.session_secs);
    Ok(response)
}
