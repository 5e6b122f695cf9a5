//! Who calls: an API key in `X-API-Key`, else a person's session in a cookie. A key that is shown counts alone, right or
//! wrong: a browser adds its cookies of its own accord. Both are looked up at every request and never cached, so that a
//! revocation is felt by the next one; streams that are open hear of it from [`crate::api::bearers`].

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use crate::api::origin::Origin;
use crate::api::problem::{ApiError, ApiResult, BODIES_FULL, Kind, QUEUE_FULL, STREAMS_FULL};
use crate::api::refusals::Refusal;
use crate::api::sessions;
use crate::api::sessions::shown::SignedIn;
use crate::api::state::ApiState;
use crate::db;
use crate::db::keys::Bearer;
use crate::db::visible::Visible;
use crate::domain::access::Rights;
use crate::domain::api_key;
use crate::domain::audit::{Actor, Asked, Entry, Outcome};
use crate::metrics::metrics;

/// Whoever may call: who, with what rights, and what shows that it is still so.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Under which its tasks and their use are booked: the key, or the person.
    pub key_id: String,
    /// `None`: a key.
    pub signed_in: Option<Arc<SignedIn>>,
    pub rights: Arc<Rights>,
    /// Keys with quotas that its runs count against.
    pub charged: Vec<String>,
    /// What it sees of the tables.
    pub visible: Visible,
    pub bearer: Bearer,
    pub origin: Origin,
}

impl Caller {
    pub fn actor(&self) -> Actor {
        match &self.signed_in {
            None => Actor::Key(self.key_id.clone()),
            Some(signed_in) => Actor::Person(signed_in.identity.clone()),
        }
    }

    /// What is said where its key or session has ended.
    pub fn ended(&self) -> &'static str {
        if self.signed_in.is_some() {
            "the session is no longer valid"
        } else {
            "the API key is no longer valid"
        }
    }

    /// A transaction of an act of its own. The body may have come long after the caller was known: here it is asked for
    /// again, and it is not revoked before the act is written.
    pub async fn begin(&self, state: &ApiState) -> ApiResult<sqlx::PgTransaction<'static>> {
        let mut transaction = state.pool.begin().await?;
        self.hold(&mut transaction).await?;
        Ok(transaction)
    }

    /// As [`Caller::begin`], for changes of keys and sessions.
    pub async fn begin_alone(&self, state: &ApiState) -> ApiResult<sqlx::PgTransaction<'static>> {
        let mut transaction = state.pool.begin().await?;
        db::keys::change_alone(&mut transaction).await?;
        self.hold(&mut transaction).await?;
        Ok(transaction)
    }

    async fn hold(&self, connection: &mut sqlx::PgConnection) -> ApiResult<()> {
        if db::keys::hold(connection, &self.bearer).await? {
            return Ok(());
        }
        Err(if self.signed_in.is_some() { ApiError::session_ended() } else { ApiError::key_unknown() })
    }

    /// The audit entry of an act of its own that is done.
    pub fn did(&self, action: &'static str, object: String, mut details: Value) -> Asked {
        if let (Some(signed_in), Value::Object(fields)) = (&self.signed_in, &mut details) {
            fields.insert("session".to_owned(), json!(signed_in.row.id));
        }
        let entry = Entry { actor: self.actor(), action, object, outcome: Outcome::Done, details };
        self.origin.asked(entry)
    }
}

pub(super) async fn require_key(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    let origin = Origin::of(&request);
    let authenticated = match state.limits.may_authenticate(&origin) {
        Err(shut_out) => Err(shut_out),
        Ok(()) => authenticate(&state, request.headers(), &origin).await,
    };
    let showed_cookie = !request.headers().contains_key("x-api-key");
    let (caller, response) = match authenticated {
        Err(refused) => {
            let mut response = refused.into_response();
            if showed_cookie && response.status() == StatusCode::UNAUTHORIZED {
                sessions::cookie::forget(&state, &mut response);
            }
            (None, response)
        }
        Ok(caller) => {
            let response = match sessions::csrf::check(&state, &caller, &request) {
                Err(forged) => forged.into_response(),
                Ok(()) => {
                    request.extensions_mut().insert(caller.clone());
                    within_limit(&state, &caller, request, next).await
                }
            };
            (Some(caller), response)
        }
    };
    if response.status() == StatusCode::UNAUTHORIZED {
        metrics().http.auth_failed();
        if state.limits.failed(&origin) {
            state.alarms.repeated_failures(&origin);
        }
    }
    if let Some(reason) = refused(caller.as_ref(), &response) {
        let who = caller.as_ref().map(Caller::actor);
        state.refusals.note(Refusal { origin, who, reason });
    }
    response
}

async fn within_limit(state: &ApiState, caller: &Caller, mut request: Request, next: Next) -> Response {
    match state.limits.of_key(&caller.key_id) {
        Err(limited) => limited.into_response(),
        Ok(left) => {
            // Held until there is an answer: what was read of the body lives as long.
            let room = state.bodies.room(&caller.key_id);
            request.extensions_mut().insert(Arc::clone(&room));
            let mut response = next.run(request).await;
            drop(room);
            left.tell(response.headers_mut());
            response
        }
    }
}

/// Why the trail must know of an answer. What a limited key does not find may be there for others.
fn refused(caller: Option<&Caller>, response: &Response) -> Option<&'static str> {
    let Kind(kind) = *response.extensions().get::<Kind>()?;
    match response.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => Some(kind),
        StatusCode::SERVICE_UNAVAILABLE if [BODIES_FULL, QUEUE_FULL, STREAMS_FULL].contains(&kind) => {
            Some(kind)
        }
        StatusCode::NOT_FOUND if caller.is_some_and(|caller| caller.rights.is_limited()) => Some(kind),
        _ => None,
    }
}

/// The holder of a valid key or session. What is neither of ours is refused without a word with the database.
async fn authenticate(state: &ApiState, headers: &HeaderMap, origin: &Origin) -> ApiResult<Caller> {
    let mut shown = headers.get_all("x-api-key").iter();
    let Some(header) = shown.next() else {
        let signed_in = sessions::shown::find(state, headers, origin).await?;
        return signed_in.ok_or_else(ApiError::key_missing);
    };
    if shown.next().is_some() {
        return Err(ApiError::key_unknown());
    }
    let shown = header.to_str().ok().and_then(api_key::parse).ok_or_else(ApiError::key_unknown)?;
    let known = db::keys::find_shown(&state.pool, &shown.id).await?.ok_or_else(ApiError::key_unknown)?;
    let present = known.row.secret_sha256.as_slice().ct_eq(&shown.secret_sha256);
    // Compared in any case, so that its time tells nothing.
    let former = known.row.previous_sha256.as_deref().unwrap_or_default().ct_eq(&shown.secret_sha256);
    let taken = bool::from(present) || (bool::from(former) && known.previous_is_taken);
    if !taken || !known.is_active {
        return Err(ApiError::key_unknown());
    }
    if known.use_is_due {
        db::keys::touch(&state.pool, &shown.id).await?;
    }
    let rights = known.row.rights()?;
    Ok(Caller {
        visible: Visible::to(&rights),
        rights: Arc::new(rights),
        charged: known.row.charged,
        bearer: Bearer { key_id: shown.id.clone(), secret_sha256: shown.secret_sha256 },
        key_id: shown.id,
        signed_in: None,
        origin: origin.clone(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use axum::http::HeaderValue;
    use secrecy::ExposeSecret;
    use sqlx::postgres::PgPoolOptions;

    use super::*;
    use crate::config::api::ApiConfig;
    use crate::config::settings::Settings;
    use crate::lifecycle::Lifecycle;

    /// A database that cannot be asked: what is refused all the same was refused without it.
    #[tokio::test]
    async fn what_is_no_key_is_refused_without_the_database() {
        let pool = PgPoolOptions::new().connect_lazy("postgres://nobody@127.0.0.1:1/none").expect("a pool");
        pool.close().await;
        let mut settings = Settings::from_parts(BTreeMap::new(), None).expect("settings");
        let config = ApiConfig::from_settings(&mut settings).expect("settings");
        let state = ApiState::new(pool, config, &Lifecycle::new());
        let origin = Origin { request_id: "r".to_owned(), ..Origin::default() };
        let status = async |key: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(key) = key {
                headers.insert("x-api-key", HeaderValue::from_str(key).expect("a value"));
            }
            let refused = authenticate(&state, &headers, &origin).await.expect_err("no database, no caller");
            refused.into_response().status().as_u16()
        };
        let (_, whole) = api_key::generate();
        let whole = whole.expose_secret();
        let last = if whole.ends_with('0') { "1" } else { "0" };
        let mistyped = format!("{}{last}", &whole[..whole.len() - 1]);
        for wrong in [None, Some(""), Some("kage_"), Some(mistyped.as_str()), Some(&whole[1..])] {
            assert_eq!(status(wrong).await, 401, "{wrong:?}");
        }
        // A whole one cannot be judged, and does not get in either.
        assert_eq!(status(Some(whole)).await, 503);
    }
}
