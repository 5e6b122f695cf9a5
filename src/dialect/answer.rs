//! How each dialect says no. A refusal that is final has to end the CLI at its first answer, for several of
//! them retry for hours. What does so was measured CLI by CLI: Claude Code stops at 402 and 403; Codex at 400
//! and at 429 with `usage_limit_reached`, and repeats every other 4xx; Gemini CLI, Qwen Code and OpenCode stop
//! at 400 to 403; Aider at 400, and at 402 with certain words. All of them but Gemini's and Codex's are built on
//! client libraries that heed `x-should-retry`.

use serde_json::{Value, json};

use crate::domain::model::Dialect;

/// Why a call is not made, or not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// No such route in this dialect.
    NotFound,
    /// Not a request that this dialect knows.
    BadRequest,
    ModelNotAllowed,
    /// A tool that the provider would run by itself.
    ToolNotAllowed,
    /// Something that the provider would fetch or look up by itself.
    ReferenceNotAllowed,
    /// More bytes, values or nesting than a request may have.
    TooLarge,
    RateLimited {
        retry_after_secs: u64,
    },
    BudgetExhausted,
    /// The run may make no calls any more.
    Revoked,
    /// The provider does not accept the gateway's credential.
    UpstreamAuth,
    UpstreamUnavailable,
    UpstreamTimeout,
    /// The provider's answer makes no sense or broke off.
    UpstreamBroken,
    /// The gateway itself has too much to do.
    Overloaded,
}

impl RefusalKind {
    /// Whether asking again is of no use.
    pub const fn is_final(self) -> bool {
        !matches!(
            self,
            Self::RateLimited { .. }
                | Self::UpstreamUnavailable
                | Self::UpstreamTimeout
                | Self::UpstreamBroken
                | Self::Overloaded
        )
    }

    /// A word for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::BadRequest => "bad_request",
            Self::ModelNotAllowed => "model_not_allowed",
            Self::ToolNotAllowed => "tool_not_allowed",
            Self::ReferenceNotAllowed => "reference_not_allowed",
            Self::TooLarge => "too_large",
            Self::RateLimited { .. } => "rate_limited",
            Self::BudgetExhausted => "budget_exhausted",
            Self::Revoked => "revoked",
            Self::UpstreamAuth => "upstream_auth",
            Self::UpstreamUnavailable => "upstream_unavailable",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::UpstreamBroken => "upstream_broken",
            Self::Overloaded => "overloaded",
        }
    }

    /// The status by HTTP's meaning, before a dialect bends it.
    const fn status(self) -> u16 {
        match self {
            Self::NotFound => 404,
            Self::BadRequest => 400,
            Self::ModelNotAllowed
            | Self::ToolNotAllowed
            | Self::ReferenceNotAllowed
            | Self::Revoked
            | Self::UpstreamAuth => 403,
            Self::TooLarge => 413,
            Self::RateLimited { .. } => 429,
            Self::BudgetExhausted => 402,
            Self::UpstreamUnavailable | Self::Overloaded => 503,
            Self::UpstreamTimeout => 504,
            Self::UpstreamBroken => 502,
        }
    }
}

/// A call that is not made, or not finished. The message is for the CLI to show: no secrets in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub kind: RefusalKind,
    pub message: String,
}

impl Refusal {
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// An answer of the gateway's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    /// JSON.
    pub body: Vec<u8>,
}

/// The refusal in the dialect's own words, for a call whose answer has not begun.
pub fn answer(dialect: Dialect, refusal: &Refusal) -> Answer {
    let status = status(dialect, refusal.kind);
    let mut headers = vec![("content-type", "application/json".to_owned())];
    if refusal.kind.is_final() {
        headers.push(("x-should-retry", "false".to_owned()));
    }
    if let RefusalKind::RateLimited { retry_after_secs } = refusal.kind {
        headers.push(("retry-after", retry_after_secs.to_string()));
    }
    Answer { status, headers, body: error_body(dialect, refusal, status).to_string().into_bytes() }
}

/// The refusal as the last event of a stream that has begun, to be sent in a piece of its own. It begins at the
/// start of a line: where the provider's stream broke off within one, the caller ends that line and, but for
/// Ollama, the event first (`usage::UsageReader::at_boundary` tells). A stream of Ollama's is best cut off after it:
/// one client library drops the line unread and takes a clean end for an empty answer, which its CLI then asks
/// for anew without a pause.
pub fn stream_error(dialect: Dialect, refusal: &Refusal) -> Vec<u8> {
    let body = error_body(dialect, refusal, status(dialect, refusal.kind));
    let text = match dialect {
        Dialect::Anthropic => format!("event: error\ndata: {body}\n\n"),
        Dialect::Responses => {
            format!("event: response.failed\ndata: {}\n\n", failed_response(refusal))
        }
        Dialect::Chat => format!("data: {body}\n\n"),
        // Bare, as Google's own servers send it; its client library takes `data:` for one more piece.
        Dialect::Gemini => format!("{body}\n"),
        Dialect::Ollama => format!("{body}\n"),
    };
    text.into_bytes()
}

const fn status(dialect: Dialect, kind: RefusalKind) -> u16 {
    let plain = kind.status();
    match (dialect, kind) {
        (Dialect::Anthropic, RefusalKind::Overloaded) => 529,
        (Dialect::Responses, RefusalKind::BudgetExhausted) => 429,
        // Codex and Aider repeat a 403 and a 413; a 400 ends them.
        (Dialect::Responses | Dialect::Chat | Dialect::Ollama, _) if plain == 403 || plain == 413 => 400,
        (Dialect::Gemini, RefusalKind::TooLarge) => 400,
        _ => plain,
    }
}

fn error_body(dialect: Dialect, refusal: &Refusal, status: u16) -> Value {
    let message = words(refusal);
    match dialect {
        Dialect::Anthropic => {
            json!({"type": "error", "error": {"type": anthropic_type(status), "message": message}})
        }
        Dialect::Responses => {
            let (kind, code) = openai_type(dialect, refusal.kind);
            json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
        }
        Dialect::Chat => {
            let (kind, code) = openai_type(dialect, refusal.kind);
            let message = with_aiders_words(message, refusal.kind);
            // Aider looks for `"code":402` in what it is told.
            let code = if refusal.kind == RefusalKind::BudgetExhausted { json!(status) } else { json!(code) };
            json!({"error": {"code": code, "message": message, "type": kind, "param": null}})
        }
        Dialect::Gemini => gemini_body(refusal.kind, status, &message),
        Dialect::Ollama => {
            json!({"code": status, "error": with_aiders_words(message, refusal.kind)})
        }
    }
}

fn words(refusal: &Refusal) -> String {
    format!("Kage gateway: {}", refusal.message)
}

/// Aider repeats a 402 for a minute unless it reads these words in it.
fn with_aiders_words(message: String, kind: RefusalKind) -> String {
    if kind == RefusalKind::BudgetExhausted {
        format!("{message} (insufficient credits, \"code\":402)")
    } else {
        message
    }
}

/// <https://docs.claude.com/en/api/errors>
const fn anthropic_type(status: u16) -> &'static str {
    match status {
        400 => "invalid_request_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        529 => "overloaded_error",
        _ => "api_error",
    }
}

/// (`error.type`, `error.code`).
const fn openai_type(dialect: Dialect, kind: RefusalKind) -> (&'static str, &'static str) {
    match kind {
        RefusalKind::BudgetExhausted if matches!(dialect, Dialect::Responses) => {
            ("usage_limit_reached", "insufficient_quota")
        }
        RefusalKind::BudgetExhausted => ("insufficient_quota", "insufficient_quota"),
        RefusalKind::RateLimited { .. } => ("rate_limit_error", "rate_limit_exceeded"),
        RefusalKind::UpstreamUnavailable
        | RefusalKind::UpstreamTimeout
        | RefusalKind::UpstreamBroken
        | RefusalKind::Overloaded => ("server_error", kind.as_str()),
        _ => ("invalid_request_error", kind.as_str()),
    }
}

/// <https://cloud.google.com/apis/design/errors>
fn gemini_body(kind: RefusalKind, status: u16, message: &str) -> Value {
    let name = match status {
        400 => "INVALID_ARGUMENT",
        402 => "FAILED_PRECONDITION",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        504 => "DEADLINE_EXCEEDED",
        503 => "UNAVAILABLE",
        _ => "INTERNAL",
    };
    let mut error = json!({"code": status, "message": message, "status": name});
    if let RefusalKind::RateLimited { retry_after_secs } = kind {
        error["details"] = json!([{
            "@type": "type.googleapis.com/google.rpc.RetryInfo",
            "retryDelay": format!("{retry_after_secs}s"),
        }]);
    }
    json!({ "error": error })
}

/// The event that ends a Responses stream. Codex repeats the call unless the code is one of a few.
fn failed_response(refusal: &Refusal) -> Value {
    let code = match refusal.kind {
        RefusalKind::BudgetExhausted => "insufficient_quota",
        RefusalKind::RateLimited { .. } => "rate_limit_exceeded",
        kind if kind.is_final() => "invalid_prompt",
        _ => "server_error",
    };
    json!({
        "type": "response.failed",
        "response": {
            "id": "resp_kage",
            "object": "response",
            "status": "failed",
            "output": [],
            "error": {"code": code, "message": words(refusal)},
        },
    })
}

/// Whether a provider's error is about the operator's credential or account, not about the request. Google answers a
/// wrong key with 400: <https://cloud.google.com/apis/design/errors#error_info>, `reason`.
pub fn is_about_the_key(dialect: Dialect, status: u16, document: Option<&[u8]>) -> bool {
    match status {
        401 | 402 | 403 | 407 => true,
        400 if dialect == Dialect::Gemini => {
            let document: Option<Value> = document.and_then(|text| serde_json::from_slice(text).ok());
            let details = document.as_ref().and_then(|document| document["error"]["details"].as_array());
            let about = |detail: &Value| {
                detail["reason"].as_str().is_some_and(|reason| reason.starts_with("API_KEY_"))
            };
            details.is_some_and(|details| details.iter().any(about))
        }
        _ => false,
    }
}
