//! Which headers pass, in each direction. All others are dropped.

use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderMap, HeaderValue};
use secrecy::SecretString;

use crate::domain::model::Dialect;
use crate::gateway::credential;

const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");
const ANTHROPIC_BETA: HeaderName = HeaderName::from_static("anthropic-beta");

/// Features in trial that change what is said, not what the vendor reaches out to, and not the price:
/// beginnings of their names, each followed by a date.
const BETAS: [&str; 13] = [
    "claude-code-",
    "interleaved-thinking-",
    "fine-grained-tool-streaming-",
    "prompt-caching-",
    "extended-cache-ttl-",
    "context-management-",
    "token-efficient-tools-",
    "token-counting-",
    "output-128k-",
    "max-tokens-",
    "effort-",
    "structured-outputs-",
    "adaptive-thinking-",
];

/// What of a CLI's headers goes on to the provider.
pub(super) fn to_provider(dialect: Dialect, client: &HeaderMap, stream: bool, out: &mut HeaderMap) {
    if stream {
        out.insert(
            ACCEPT,
            HeaderValue::from_static("text/event-stream, application/json, application/x-ndjson"),
        );
    }
    if dialect != Dialect::Anthropic {
        return;
    }
    let version = client.get(ANTHROPIC_VERSION).filter(|value| is_day(value.as_bytes()));
    out.insert(ANTHROPIC_VERSION, version.cloned().unwrap_or(HeaderValue::from_static("2023-06-01")));
    let asked = client.get_all(ANTHROPIC_BETA).iter().filter_map(|value| value.to_str().ok());
    let betas: Vec<&str> =
        asked.flat_map(|list| list.split(',')).map(str::trim).filter(|beta| is_beta(beta)).collect();
    if let (false, Ok(value)) = (betas.is_empty(), HeaderValue::from_str(&betas.join(","))) {
        out.insert(ANTHROPIC_BETA, value);
    }
}

fn is_beta(beta: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    beta.len() <= 80 && beta.chars().all(plain) && BETAS.iter().any(|known| beta.starts_with(known))
}

fn is_day(text: &[u8]) -> bool {
    let shape = b"dddd-dd-dd";
    text.len() == shape.len()
        && text.iter().zip(shape).all(|(c, form)| if *form == b'd' { c.is_ascii_digit() } else { c == form })
}

/// The kind of an answer's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyKind {
    Json,
    EventStream,
    JsonLines,
}

impl BodyKind {
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::EventStream => "text/event-stream",
            Self::JsonLines => "application/x-ndjson",
        }
    }

    pub const fn is_stream(self) -> bool {
        !matches!(self, Self::Json)
    }
}

/// What a provider's answer is; `None`: nothing that a dialect has.
pub(super) fn body_kind(headers: &HeaderMap) -> Option<BodyKind> {
    let encoded = headers.get_all(CONTENT_ENCODING).iter().any(|value| value != "identity");
    let kind = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        _ if encoded => None,
        "application/json" => Some(BodyKind::Json),
        "text/event-stream" => Some(BodyKind::EventStream),
        "application/x-ndjson" => Some(BodyKind::JsonLines),
        _ => None,
    }
}

/// What of a provider's headers goes on to the CLI; none that repeats the credential.
pub(super) fn to_client(upstream: &HeaderMap, kind: BodyKind, secret: Option<&SecretString>) -> HeaderMap {
    const PASSED: [HeaderName; 4] = [
        RETRY_AFTER,
        HeaderName::from_static("x-should-retry"),
        HeaderName::from_static("request-id"),
        HeaderName::from_static("x-request-id"),
    ];
    let mut headers = HeaderMap::new();
    for name in PASSED {
        let short = |value: &&HeaderValue| {
            value.len() <= 128 && value.as_bytes().iter().all(|b| (32..127).contains(b))
        };
        let clean = |value: &&HeaderValue| {
            !secret.is_some_and(|secret| credential::appears_in(secret, value.as_bytes()))
        };
        if let Some(value) = upstream.get(&name).filter(short).filter(clean) {
            headers.insert(name, value.clone());
        }
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind.content_type()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn a_clients_own_words_are_dropped() {
        let client = map(&[
            ("authorization", "Bearer placeholder"),
            ("x-api-key", "placeholder"),
            ("cookie", "a=b"),
            ("x-forwarded-for", "10.0.0.1"),
            ("anthropic-version", "2024-01-01"),
            ("anthropic-beta", "claude-code-20250219, files-api-2025-04-14,mcp-client-2025-04-04"),
            ("anthropic-dangerous-direct-browser-access", "true"),
            ("user-agent", "x"),
            ("proxy-authorization", "x"),
        ]);
        let mut out = HeaderMap::new();
        to_provider(Dialect::Anthropic, &client, true, &mut out);
        let mut names: Vec<&str> = out.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "anthropic-beta", "anthropic-version"]);
        assert_eq!(out["anthropic-beta"], "claude-code-20250219");
        assert_eq!(out["anthropic-version"], "2024-01-01");
        let mut out = HeaderMap::new();
        to_provider(Dialect::Chat, &client, false, &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn a_version_is_a_day() {
        let mut out = HeaderMap::new();
        to_provider(Dialect::Anthropic, &map(&[("anthropic-version", "../../x")]), false, &mut out);
        assert_eq!(out["anthropic-version"], "2023-06-01");
        assert!(!is_beta("claude-code-\u{200b}x") && !is_beta("Claude-Code-1"));
    }

    #[test]
    fn of_an_answers_headers_few_pass() {
        let upstream = map(&[
            ("content-type", "text/event-stream; charset=utf-8"),
            ("retry-after", "7"),
            ("request-id", "req_1"),
            ("set-cookie", "a=b"),
            ("anthropic-organization-id", "org"),
            ("location", "https://elsewhere.example"),
        ]);
        let kind = body_kind(&upstream).unwrap();
        let out = to_client(&upstream, kind, Some(&SecretString::from("req_2")));
        assert_eq!(out["content-type"], "text/event-stream");
        assert_eq!(out["retry-after"], "7");
        assert_eq!(out.len(), 4);
        assert!(!to_client(&upstream, kind, Some(&SecretString::from("req_1"))).contains_key("request-id"));
        assert_eq!(body_kind(&map(&[("content-type", "text/html")])), None);
        assert_eq!(
            body_kind(&map(&[("content-type", "application/json"), ("content-encoding", "gzip")])),
            None
        );
    }
}
