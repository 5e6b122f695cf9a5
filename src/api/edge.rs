//! What every request passes first: sizes in, headers out.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api::origin::Origin;
use crate::api::problem::ApiError;
use crate::api::state::ApiState;
use crate::config::edge::EdgeConfig;

/// Most bytes of path and query.
const URL_BYTES: usize = 8 * 1024;
/// Most bytes of all headers.
const HEADER_BYTES: usize = 32 * 1024;
/// From a request's head to its answer's: a database may hang instead of failing, and a client may send no body.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What a browser may do with an answer that was not meant for it: nothing. What agents and repositories wrote is in
/// many of them.
const NO_PAGE: &str =
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox";
/// The one page there is: its own files, no script or style between its lines, no other host.
const DOCS_PAGE: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Where it stands: this path and all below it.
pub(super) const DOCS: &str = "/docs";

/// The policy for an answer at a path.
fn content_security_policy(path: &str) -> &'static str {
    let below = path.strip_prefix(DOCS);
    if below.is_some_and(|below| below.is_empty() || below.starts_with('/')) { DOCS_PAGE } else { NO_PAGE }
}

fn strict_transport(config: &EdgeConfig) -> Option<HeaderValue> {
    let below = if config.hsts_subdomains { "; includeSubDomains" } else { "" };
    let value = format!("max-age={}{below}", config.hsts_secs);
    HeaderValue::from_str(&value).ok().filter(|_| config.hsts_secs > 0)
}

pub(super) async fn guard(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let tls = Origin::of(&request).tls;
    let url = request.uri().path_and_query().map_or(0, |both| both.as_str().len());
    let headers: usize =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    // Nothing is named with the character NUL, and Postgres cannot even be asked for it.
    let nul = request.uri().path().contains("%00");
    let policy = content_security_policy(request.uri().path());
    let mut response = if url > URL_BYTES {
        ApiError::uri_too_long(format!("path and query are {url} bytes; {URL_BYTES} are allowed"))
            .into_response()
    } else if headers > HEADER_BYTES {
        ApiError::headers_too_large(format!("the headers are {headers} bytes; {HEADER_BYTES} are allowed"))
            .into_response()
    } else if nul {
        ApiError::not_found("resource: the path holds the character NUL").into_response()
    } else {
        let answer = tokio::time::timeout(ANSWER_WITHIN, next.run(request)).await;
        answer.unwrap_or_else(|_| ApiError::late().into_response())
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    // Said in plain HTTP it means nothing, and anybody on the way could say it.
    if let Some(value) = strict_transport(&state.config.edge).filter(|_| tls) {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, value);
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
