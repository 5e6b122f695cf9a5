//! Answers in one piece: errors, lists, counts.

use std::io;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::dialect::Dialect;
use crate::server::Fixed;

pub type Body = UnsyncBoxBody<Bytes, io::Error>;

#[must_use]
pub fn json(status: u16, value: &Value) -> Response<Body> {
    whole(status, "application/json", Bytes::from(value.to_string()))
}

#[must_use]
pub fn whole(status: u16, content_type: &'static str, bytes: Bytes) -> Response<Body> {
    with_body(status, content_type, Full::new(bytes).map_err(|never| match never {}).boxed_unsync())
}

#[must_use]
pub fn with_body(status: u16, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Headers that are none are left out.
#[must_use]
pub fn fixed(fixed: &Fixed) -> Response<Body> {
    let mut response = whole(fixed.status, "application/json", Bytes::from(fixed.body.clone()));
    for (name, value) in &fixed.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

#[must_use]
pub fn error(dialect: Dialect, status: u16, message: &str, retry_after_secs: Option<u32>) -> Response<Body> {
    let mut response = json(status, &dialect.error(status, message));
    if let Some(secs) = retry_after_secs {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(secs));
    }
    response
}

#[must_use]
pub fn models(dialect: Dialect, models: &[String]) -> Response<Body> {
    let value = match dialect {
        Dialect::Gemini => {
            let list = models.iter().map(|name| {
                json!({
                    "name": format!("models/{name}"), "displayName": name, "inputTokenLimit": 200_000,
                    "outputTokenLimit": 32_000,
                    "supportedGenerationMethods": ["generateContent", "streamGenerateContent", "countTokens"],
                })
            });
            json!({ "models": list.collect::<Vec<_>>() })
        }
        Dialect::Ollama => {
            let list = models.iter().map(|name| {
                json!({
                    "name": name, "model": name, "modified_at": "2026-01-01T00:00:00Z", "size": 1, "digest": "kage",
                    "details": details(),
                })
            });
            json!({ "models": list.collect::<Vec<_>>() })
        }
        // The two vendors that share the path are served at once.
        Dialect::Anthropic | Dialect::Responses | Dialect::Chat => {
            let list = models.iter().map(|name| {
                json!({
                    "id": name, "object": "model", "created": 1_767_225_600, "owned_by": "kage", "type": "model",
                    "display_name": name, "created_at": "2026-01-01T00:00:00Z",
                })
            });
            json!({
                "object": "list", "data": list.collect::<Vec<_>>(), "has_more": false, "first_id": models.first(),
                "last_id": models.last(),
            })
        }
    };
    json(200, &value)
}

/// Ollama's `/api/show`.
#[must_use]
pub fn show() -> Response<Body> {
    json(
        200,
        &json!({
            "modelfile": "", "parameters": "", "template": "{{ .Prompt }}", "details": details(),
            "model_info": { "general.architecture": "kage", "kage.context_length": 131_072 },
            "capabilities": ["completion", "tools"], "modified_at": "2026-01-01T00:00:00Z",
        }),
    )
}

fn details() -> Value {
    json!({ "format": "gguf", "family": "kage", "families": ["kage"], "parameter_size": "1B", "quantization_level": "Q4_0" })
}

/// A token is taken for four bytes; the figure is the same for the same request.
#[must_use]
pub fn count(dialect: Dialect, body: &[u8]) -> Response<Body> {
    let tokens = body.len().div_ceil(4);
    let value = match dialect {
        Dialect::Gemini => json!({ "totalTokens": tokens }),
        _ => json!({ "input_tokens": tokens }),
    };
    json(200, &value)
}
