//! `GET /auth/oidc/login`.

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::extract::Query;
use crate::api::network::network;
use crate::api::origin::Origin;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::sessions::cookie::{self, Cookie};
use crate::api::sessions::{challenge, return_to, sign_in as configured, troubled};
use crate::api::state::ApiState;
use crate::db;
use crate::domain::session::{CookieSecret, Use};
use crate::wire::problem::Problem;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct Wish {
    /// A path of this server to go to afterwards.
    #[param(pattern = r"^[^\x00]*$")]
    return_to: Option<String>,
}

/// Begins to sign a person in: sends its browser to the OpenID provider.
#[utoipa::path(get, path = "/auth/oidc/login", tag = "sessions", params(Wish),
    responses((status = 303, description = "To the provider"),
              (status = 404, body = Problem, description = "Nobody signs in here"),
              (status = 422, body = Problem, description = "return_to is no path of this server"),
              (status = 503, body = Problem)))]
pub(in crate::api) async fn sign_in(
    State(state): State<ApiState>,
    Extension(origin): Extension<Origin>,
    Query(wish): Query<Wish>,
) -> ApiResult<Response> {
    let sign_in = configured(&state)?;
    state.limits.may_authenticate(&origin)?;
    let wanted = wish.return_to.as_deref().unwrap_or("/");
    let return_to = return_to::check(wanted, &sign_in.config.public_url)
        .ok_or_else(|| ApiError::invalid("return_to: a path of this server, such as /tasks"))?;
    let secret = CookieSecret::generate();
    let url = sign_in.party.authorize_url(&challenge(&secret)).await.map_err(|error| troubled(&error))?;
    let from = origin.address.map_or_else(|| "?".to_owned(), |address| network(address).to_string());
    if !db::sign_ins::begin(&state.pool, &secret.derive(Use::SignIn), return_to, &from).await? {
        return Err(ApiError::busy("too many people are signing in"));
    }
    let location = HeaderValue::from_str(url.as_str()).map_err(|_| {
        ApiError::sign_in(StatusCode::SERVICE_UNAVAILABLE, "sign-in-unavailable", "no such URL")
    })?;
    let mut response = (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response();
    cookie::set(&sign_in, &mut response, Cookie::SignIn, &secret, db::sign_ins::SECS);
    Ok(response)
}
