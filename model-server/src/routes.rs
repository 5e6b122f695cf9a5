//! Paths of the five dialects.

use hyper::Method;

use crate::dialect::Dialect;

#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// An answer of the model. Where model and streaming are in the path (Gemini), they are here.
    Generate {
        dialect: Dialect,
        model: Option<String>,
        stream: Option<bool>,
    },
    CountTokens(Dialect),
    Models(Dialect),
    /// Ollama's facts about a model.
    Show,
    Version,
    /// "Are you there?", in whatever form.
    Hello,
    /// What was recorded; `DELETE` forgets it.
    Requests,
    Forget,
    Unknown,
}

/// The dialect of an unknown path does not matter: errors are in the Chat form then.
#[must_use]
pub fn route(method: &Method, path: &str) -> Route {
    let generate = |dialect| Route::Generate { dialect, model: None, stream: None };
    let unversioned = path.strip_prefix("/v1").unwrap_or(path);
    match (method.as_str(), path) {
        ("GET" | "HEAD", "/" | "/api/hello") => return Route::Hello,
        ("GET", "/__kage/requests") => return Route::Requests,
        ("DELETE", "/__kage/requests") => return Route::Forget,
        ("POST", "/api/chat") => return generate(Dialect::Ollama),
        ("GET", "/api/tags") => return Route::Models(Dialect::Ollama),
        ("POST", "/api/show") => return Route::Show,
        ("GET", "/api/version") => return Route::Version,
        ("POST", "/v1/messages") => return generate(Dialect::Anthropic),
        ("POST", "/v1/messages/count_tokens") => return Route::CountTokens(Dialect::Anthropic),
        ("GET", "/v1beta/models") => return Route::Models(Dialect::Gemini),
        _ => {}
    }
    match (method.as_str(), unversioned) {
        ("POST", "/responses") => generate(Dialect::Responses),
        ("POST", "/chat/completions") => generate(Dialect::Chat),
        ("GET", "/models") => Route::Models(Dialect::Chat),
        ("POST", _) => gemini(path).unwrap_or(Route::Unknown),
        _ => Route::Unknown,
    }
}

fn gemini(path: &str) -> Option<Route> {
    let (model, verb) = path.strip_prefix("/v1beta/models/")?.rsplit_once(':')?;
    let generate = |stream| Route::Generate {
        dialect: Dialect::Gemini,
        model: Some(model.to_owned()),
        stream: Some(stream),
    };
    match verb {
        "generateContent" => Some(generate(false)),
        "streamGenerateContent" => Some(generate(true)),
        "countTokens" => Some(Route::CountTokens(Dialect::Gemini)),
        _ => None,
    }
}
