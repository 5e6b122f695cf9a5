//! The calls that each dialect has. A path is compared byte for byte: an encoded, doubled or differently
//! written one is not found, so nothing is left for a provider to read in another way.

use crate::dialect::answer::{Refusal, RefusalKind};
use crate::domain::model::Dialect;

/// One call of a dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// The model is to answer.
    Generate {
        /// Whether it is to stream, where the path says so.
        stream_hint: Option<bool>,
        /// Gemini names the model in the path.
        model_in_path: Option<String>,
    },
    /// How long a request is; costs nothing.
    CountTokens { model_in_path: Option<String> },
    /// Which models there are.
    Models,
    /// What a model can do (Ollama).
    Show,
    /// Which version answers (Ollama).
    Version,
    /// Whether anybody answers (Claude Code).
    Hello,
}

const GENERATE: Call = Call::Generate { stream_hint: None, model_in_path: None };
const COUNT: Call = Call::CountTokens { model_in_path: None };

/// The longest model name that a path or a body may hold, in bytes.
pub(crate) const MODEL_BYTES: usize = 200;

/// The call that this method, path and query make.
///
/// # Errors
/// `NotFound` for everything that is not on the dialect's list.
pub fn route(dialect: Dialect, method: &str, path: &str, query: Option<&str>) -> Result<Call, Refusal> {
    let call = match dialect {
        Dialect::Anthropic => anthropic(method, path, query),
        Dialect::Responses => match (method, path, query) {
            ("POST", "/v1/responses" | "/responses", None) => Some(GENERATE),
            ("GET", "/v1/models" | "/models", None) => Some(Call::Models),
            _ => None,
        },
        Dialect::Chat => match (method, path, query) {
            ("POST", "/v1/chat/completions" | "/chat/completions", None) => Some(GENERATE),
            ("GET", "/v1/models" | "/models", None) => Some(Call::Models),
            _ => None,
        },
        Dialect::Gemini => gemini(method, path, query),
        Dialect::Ollama => match (method, path, query) {
            ("POST", "/api/chat", None) => Some(GENERATE),
            ("GET", "/api/tags", None) => Some(Call::Models),
            ("POST", "/api/show", None) => Some(Call::Show),
            ("GET", "/api/version", None) => Some(Call::Version),
            _ => None,
        },
    };
    call.ok_or_else(|| {
        let shown: String = path.chars().take(100).flat_map(char::escape_debug).collect();
        let verb: String = method.chars().take(10).flat_map(char::escape_debug).collect();
        Refusal::new(RefusalKind::NotFound, format!("{verb} {shown} is not a call of the {dialect} dialect"))
    })
}

fn anthropic(method: &str, path: &str, query: Option<&str>) -> Option<Call> {
    match (method, path, query) {
        ("POST", "/v1/messages", None | Some("beta=true")) => Some(GENERATE),
        ("POST", "/v1/messages/count_tokens", None | Some("beta=true")) => Some(COUNT),
        ("GET", "/v1/models", None) => Some(Call::Models),
        ("GET" | "HEAD", "/api/hello", None) => Some(Call::Hello),
        _ => None,
    }
}

fn gemini(method: &str, path: &str, query: Option<&str>) -> Option<Call> {
    let rest = path.strip_prefix("/v1beta/models")?;
    if rest.is_empty() {
        return (method == "GET" && query.is_none()).then_some(Call::Models);
    }
    let (model, verb) = rest.strip_prefix('/')?.split_once(':')?;
    let model_in_path = is_path_model(model).then(|| model.to_owned());
    model_in_path.as_ref()?;
    match (method, verb, query) {
        ("POST", "generateContent", None) => Some(Call::Generate { stream_hint: Some(false), model_in_path }),
        ("POST", "streamGenerateContent", Some("alt=sse")) => {
            Some(Call::Generate { stream_hint: Some(true), model_in_path })
        }
        ("POST", "countTokens", None) => Some(Call::CountTokens { model_in_path }),
        _ => None,
    }
}

fn is_path_model(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MODEL_BYTES
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && name.bytes().any(|b| b.is_ascii_alphanumeric())
}

/// The path and query to send to a provider for this call, from the root of the provider's address. Empty for
/// a call that the gateway answers by itself.
pub fn upstream_path(dialect: Dialect, call: &Call, model: &str, stream: bool) -> String {
    match (dialect, call) {
        (Dialect::Anthropic, Call::Generate { .. }) => "/v1/messages".to_owned(),
        (Dialect::Anthropic, Call::CountTokens { .. }) => "/v1/messages/count_tokens".to_owned(),
        (Dialect::Responses, Call::Generate { .. }) => "/v1/responses".to_owned(),
        (Dialect::Chat, Call::Generate { .. }) => "/v1/chat/completions".to_owned(),
        (Dialect::Gemini, Call::Generate { .. }) => {
            let verb = if stream { "streamGenerateContent?alt=sse" } else { "generateContent" };
            format!("/v1beta/models/{}:{verb}", segment(model))
        }
        (Dialect::Gemini, Call::CountTokens { .. }) => {
            format!("/v1beta/models/{}:countTokens", segment(model))
        }
        (Dialect::Ollama, Call::Generate { .. }) => "/api/chat".to_owned(),
        _ => String::new(),
    }
}

/// One path segment. The operator may name a model as he likes; a name never becomes another path.
fn segment(model: &str) -> String {
    let mut out = String::with_capacity(model.len());
    for byte in model.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
