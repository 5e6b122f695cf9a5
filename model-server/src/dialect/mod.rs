//! The five dialects. Each file reads a request into a [`Conversation`] and writes a [`Reply`].

mod anthropic;
mod chat;
mod frames;
mod gemini;
mod ollama;
mod parts;
mod responses;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::conversation::Conversation;
use crate::reply::{Frames, Reply};

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    Anthropic,
    Responses,
    Chat,
    Gemini,
    Ollama,
}

impl Dialect {
    /// Reads the body of a request for an answer. What it lacks is taken as absent: this server does not validate.
    #[must_use]
    pub fn conversation(self, body: &Value) -> Conversation {
        match self {
            Self::Anthropic => anthropic::conversation(body),
            Self::Responses => responses::conversation(body),
            Self::Chat => chat::conversation(body),
            Self::Gemini => gemini::conversation(body),
            Self::Ollama => ollama::conversation(body),
        }
    }

    /// The answer in one piece.
    #[must_use]
    pub fn whole(self, reply: &Reply) -> Value {
        match self {
            Self::Anthropic => anthropic::whole(reply),
            Self::Responses => responses::whole(reply),
            Self::Chat => chat::whole(reply),
            Self::Gemini => gemini::whole(reply),
            Self::Ollama => ollama::whole(reply),
        }
    }

    #[must_use]
    pub fn stream(self, reply: &Reply) -> Frames {
        match self {
            Self::Anthropic => anthropic::stream(reply),
            Self::Responses => responses::stream(reply),
            Self::Chat => chat::stream(reply),
            Self::Gemini => gemini::stream(reply),
            Self::Ollama => ollama::stream(reply),
        }
    }

    #[must_use]
    pub fn stream_type(self) -> &'static str {
        match self {
            Self::Ollama => "application/x-ndjson",
            _ => "text/event-stream",
        }
    }

    /// An error as the vendor words it.
    #[must_use]
    pub fn error(self, status: u16, message: &str) -> Value {
        let kind = error_kind(status);
        match self {
            Self::Anthropic => {
                json!({ "type": "error", "error": { "type": kind, "message": message }, "request_id": "req_kage" })
            }
            Self::Responses | Self::Chat => {
                json!({ "error": { "message": message, "type": kind, "param": null, "code": code(status) } })
            }
            Self::Gemini => {
                json!({ "error": { "code": status, "message": message, "status": gemini_status(status) } })
            }
            Self::Ollama => json!({ "error": message }),
        }
    }

    /// An error inside a stream that has begun.
    #[must_use]
    pub fn stream_error(self, message: &str) -> Bytes {
        let error = self.error(529, message);
        match self {
            Self::Anthropic => frames::event("error", &error),
            Self::Responses => frames::event("response.failed", &responses::failed(message)),
            Self::Chat | Self::Gemini => frames::data(&error),
            Self::Ollama => frames::line(&error),
        }
    }
}

fn error_kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

fn code(status: u16) -> Value {
    match status {
        401 => json!("invalid_api_key"),
        402 => json!("insufficient_quota"),
        404 => json!("model_not_found"),
        429 => json!("rate_limit_exceeded"),
        500.. => json!("server_error"),
        _ => Value::Null,
    }
}

fn gemini_status(status: u16) -> &'static str {
    match status {
        400 => "INVALID_ARGUMENT",
        401 => "UNAUTHENTICATED",
        402 => "FAILED_PRECONDITION",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        503 | 529 => "UNAVAILABLE",
        _ => "INTERNAL",
    }
}
