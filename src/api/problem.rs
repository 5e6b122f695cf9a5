//! Every refusal of the API. A 4xx says what to change; the text of a 5xx goes to the log alone.

use std::any::Any;
use std::collections::BTreeSet;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use crate::api::origin;
use crate::db::error::DbError;
use crate::domain::access::Scope;
use crate::wire::let_go::LetGo;
use crate::wire::problem::{CONTENT_TYPE, Problem};

#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    detail: String,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// A limit of the whole: of the key's own it is 429, of all together 503.
pub(super) const QUEUE_FULL: &str = "queue-full";
/// As [`QUEUE_FULL`].
pub(super) const STREAMS_FULL: &str = "streams-full";

/// As [`QUEUE_FULL`].
pub(super) const BODIES_FULL: &str = "bodies-full";

/// The kind of problem that an answer is, for those around the handler.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind(pub &'static str);

pub(super) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { status, kind, title, detail: detail.into(), headers: Vec::new() }
    }

    fn with_header(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", "Malformed request", detail)
    }

    pub fn key_missing() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "key-missing",
            "API key missing",
            "send your API key in the X-API-Key header",
        )
        .with_header(header::WWW_AUTHENTICATE, "ApiKey realm=\"kage\", header=\"X-API-Key\"")
    }

    pub fn key_unknown() -> Self {
        let detail = "this API key is unknown, mistyped, revoked or expired";
        Self::new(StatusCode::UNAUTHORIZED, "key-unknown", "API key refused", detail)
            .with_header(header::WWW_AUTHENTICATE, "ApiKey realm=\"kage\", header=\"X-API-Key\"")
    }

    pub fn session_ended() -> Self {
        let detail = "this session has ended; sign in again (GET /auth/oidc/login)";
        Self::new(StatusCode::UNAUTHORIZED, "session-ended", "Session ended", detail)
            .with_header(header::WWW_AUTHENTICATE, "ApiKey realm=\"kage\", header=\"X-API-Key\"")
    }

    /// A write with a session's cookie that may come from a page of somebody else.
    pub fn csrf(detail: &'static str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "csrf", "Write refused", detail)
    }

    /// Nobody is signed in by this.
    pub fn sign_in(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        let error = Self::new(status, kind, "Sign-in refused", detail);
        // The provider is away: every 503 says when to come back.
        if status == StatusCode::SERVICE_UNAVAILABLE {
            error.with_header(header::RETRY_AFTER, "30")
        } else {
            error
        }
    }

    /// A valid key without the scope of the route.
    pub fn scope_missing(needed: Scope, has: &BTreeSet<Scope>) -> Self {
        let has: Vec<&str> = has.iter().map(|scope| scope.as_str()).collect();
        let detail = format!("this needs the scope {needed}; this API key has {}", has.join(", "));
        Self::new(StatusCode::FORBIDDEN, "scope-missing", "Not allowed", detail)
    }

    /// Something that this caller may not do, with the right scope.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Not allowed", detail)
    }

    /// A quota of the key's day is used up.
    pub fn quota(detail: impl Into<String>, retry_after_secs: u64) -> Self {
        let mut error =
            Self::new(StatusCode::TOO_MANY_REQUESTS, "quota-exhausted", "Quota exhausted", detail);
        error.headers.push((header::RETRY_AFTER, HeaderValue::from(retry_after_secs)));
        error
    }

    /// Too many requests in too short a time.
    pub fn rate_limited(detail: impl Into<String>, retry_after_secs: u64) -> Self {
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", "Too many requests", detail);
        error.headers.push((header::RETRY_AFTER, HeaderValue::from(retry_after_secs)));
        error
    }

    /// As many of the key's runs wait as may.
    pub fn queue_of_key_full(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, QUEUE_FULL, "Queue full", detail)
            .with_header(header::RETRY_AFTER, "30")
    }

    /// As many runs wait as may.
    pub fn queue_full(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, QUEUE_FULL, "Queue full", detail)
            .with_header(header::RETRY_AFTER, "30")
    }

    /// As many streams of the key are open as may be.
    pub fn streams_of_key_full(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, STREAMS_FULL, "Too many event streams", detail)
            .with_header(header::RETRY_AFTER, "5")
    }

    /// As many streams are open as may be.
    pub fn streams_full(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, STREAMS_FULL, "Too many event streams", detail)
            .with_header(header::RETRY_AFTER, "5")
    }

    /// The bodies of the key's requests take as much memory as they may.
    pub fn bodies_of_key_full(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, BODIES_FULL, "Too many request bodies", detail)
            .with_header(header::RETRY_AFTER, "5")
    }

    /// The bodies of all requests take as much memory as they may.
    pub fn bodies_full(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, BODIES_FULL, "Too many request bodies", detail)
            .with_header(header::RETRY_AFTER, "5")
    }

    pub fn with_headers(mut self, headers: HeaderMap) -> Self {
        self.headers.extend(headers.into_iter().filter_map(|(name, value)| Some((name?, value))));
        self
    }

    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", format!("there is no such {what}"))
    }

    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", "Conflict with the present state", detail)
    }

    /// It was there, and the operator's rules have let it go.
    pub fn let_go(gone: &LetGo) -> Self {
        Self::new(StatusCode::GONE, "let-go", "No longer kept", gone.words())
    }

    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "Invalid request", detail)
    }

    pub fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Too large", detail)
    }

    pub fn uri_too_long(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::URI_TOO_LONG, "uri-too-long", "URL too long", detail)
    }

    pub fn headers_too_large(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "headers-too-large",
            "Headers too large",
            detail,
        )
    }

    pub fn unsupported_media(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "Unsupported media type",
            detail,
        )
    }

    pub fn not_acceptable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_ACCEPTABLE, "not-acceptable", "Not acceptable", detail)
    }

    pub fn range(detail: impl Into<String>, total: u64) -> Self {
        let mut error =
            Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", "Range not satisfiable", detail);
        if let Ok(value) = HeaderValue::from_str(&format!("bytes */{total}")) {
            error.headers.push((header::CONTENT_RANGE, value));
        }
        error
    }

    pub fn busy(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Busy", detail)
            .with_header(header::RETRY_AFTER, "5")
    }

    /// Given up: the database hangs, or the client does not send what it announced.
    pub fn late() -> Self {
        let detail = "this took too long and was given up; try again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Temporarily unavailable", detail)
            .with_header(header::RETRY_AFTER, "5")
    }

    fn unavailable() -> Self {
        // Whether a write was made is not known where the connection broke at its commit.
        let detail =
            "the database does not answer; try again (an Idempotency-Key keeps a task from being made twice)";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Temporarily unavailable", detail)
            .with_header(header::RETRY_AFTER, "5")
    }

    /// A bare 500. The caller logs the cause.
    fn internal() -> Self {
        let detail = "the server failed; its log says why";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error", detail)
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        if error.is_lock_timeout() {
            tracing::warn!(%error, "api.lock_timeout");
            Self::busy("somebody else is changing this at the moment; try again")
        } else if error.is_transient() {
            tracing::warn!(%error, "api.database_unavailable");
            Self::unavailable()
        } else {
            tracing::error!(%error, "api.internal_error");
            Self::internal()
        }
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        DbError::from(error).into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: format!("urn:kage:problem:{}", self.kind),
            title: self.title.to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
            error: self.title.to_owned(),
            instance: None,
            request_id: origin::request_id(),
        };
        let mut response = (self.status, axum::Json(problem)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        response.headers_mut().extend(self.headers);
        response.extensions_mut().insert(Kind(self.kind));
        response
    }
}

pub(super) async fn no_such_route(uri: Uri) -> ApiError {
    ApiError::not_found(&format!("path as {}", uri.path()))
}

pub(super) async fn no_such_method() -> ApiError {
    let detail = "this path does not take that method; see /openapi.json";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail)
}

pub(super) fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    tracing::error!("api.panicked");
    ApiError::internal().into_response()
}
