//! Pages of other origins: none, but those that are listed. No credentials that a browser adds of its own accord: a
//! page shows its key itself.

use axum::http::{HeaderName, HeaderValue, Method, header};
use std::time::Duration;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// What a page may send beside what every page may.
const SENT: [HeaderName; 7] = [
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("last-event-id"),
    header::ACCEPT,
    header::CONTENT_TYPE,
    header::RANGE,
];
/// What a page may read beside what every page may.
const READ: [HeaderName; 9] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("idempotent-replayed"),
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
    header::RETRY_AFTER,
    header::CONTENT_DISPOSITION,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    header::LOCATION,
];

/// `None` where no origin is listed: then nothing is said to any page.
pub(super) fn layer(origins: &[String]) -> Option<CorsLayer> {
    let origins: Vec<HeaderValue> =
        origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
    (!origins.is_empty()).then(|| {
        CorsLayer::new()
            .allow_origin(AllowOrigin::list(origins))
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            .allow_headers(SENT)
            .expose_headers(READ)
            .max_age(Duration::from_secs(600))
    })
}
