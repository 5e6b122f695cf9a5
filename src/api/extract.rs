//! Extractors whose refusals are problems.

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::api::bodies::Room;
use crate::api::problem::ApiError;
use crate::wire::object::Object;

/// A JSON object in the body.
pub(super) struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        // Whoever is known has one; a body of anybody else is not read.
        let room = request.extensions().get::<Arc<Room>>().cloned().ok_or_else(ApiError::key_missing)?;
        let request = request.map(|body| room.counted(body));
        let read = axum::Json::<Object<T>>::from_request(request, state).await;
        if let Some(refusal) = room.refusal() {
            return Err(refusal);
        }
        let axum::Json(Object(body)) = read?;
        Ok(Self(body))
    }
}

#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(ApiError))]
pub(super) struct Path<T>(pub T);

/// Of a query that is UTF-8 without NUL: axum would put another character in place of what is not.
pub(super) struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = parts.uri.query().unwrap_or_default();
        // Postgres cannot even be asked for NUL.
        if !is_utf8(query) || query.contains("%00") {
            return Err(ApiError::malformed("the query is not UTF-8, or holds the character NUL"));
        }
        let axum::extract::Query(query) = axum::extract::Query::try_from_uri(&parts.uri)?;
        Ok(Self(query))
    }
}

/// Whether it is UTF-8 once each `%` with two digits behind it is the byte that it stands for.
fn is_utf8(query: &str) -> bool {
    let (mut rest, mut decoded) = (query.as_bytes(), Vec::with_capacity(query.len()));
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *first == b'%');
        let byte = digits.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok());
        decoded.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    str::from_utf8(&decoded).is_ok()
}

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

#[cfg(test)]
mod tests {
    use super::is_utf8;

    #[test]
    fn a_query_is_utf8_behind_its_percent_signs() {
        for good in ["", "a=b", "a=%F0%9F%98%80", "100%", "%zz", "%+f", "a=%25ff", "a=\u{e9}"] {
            assert!(is_utf8(good), "{good}");
        }
        for bad in ["a=%ff", "%C3", "a=%ED%A0%80", "%F0%9F%98", "%C0%80"] {
            assert!(!is_utf8(bad), "{bad}");
        }
    }
}
