//! Extractors whose refusals are problems.

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts};

use crate::api::problem::ApiError;

#[derive(FromRequest)]
#[from_request(via(axum::Json), rejection(ApiError))]
pub(super) struct Json<T>(pub T);

#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(ApiError))]
pub(super) struct Path<T>(pub T);

#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(ApiError))]
pub(super) struct Query<T>(pub T);

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        match rejection {
            JsonRejection::JsonDataError(error) => Self::invalid(error.body_text()),
            JsonRejection::JsonSyntaxError(error) => Self::malformed(error.body_text()),
            JsonRejection::MissingJsonContentType(_) => {
                Self::unsupported_media("send Content-Type: application/json")
            }
            other if other.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE => {
                Self::too_large("the body is over the server's limit (KAGE_API_BODY_BYTES)")
            }
            other => Self::malformed(other.body_text()),
        }
    }
}

/// What cannot be an id is the id of nothing.
impl From<PathRejection> for ApiError {
    fn from(_: PathRejection) -> Self {
        Self::not_found("resource: the path holds no valid id")
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}
