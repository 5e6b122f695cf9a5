//! Asks a provider which models it has: proves the way there and the credential, and costs nothing.

use std::time::Duration;

use http::{HeaderMap, Method};

use crate::config::gateway::GatewayConfig;
use crate::config::providers::Provider;
use crate::dialect::answer;
use crate::domain::model::Dialect;
use crate::gateway::content::Content;
use crate::gateway::credential::Credentials;
use crate::gateway::upstream::{self, SendError, SetupError, Upstream};
use crate::gateway::{catalog, headers, relay};

/// For one provider's answer.
const WITHIN: Duration = Duration::from_secs(20);

/// What a provider said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub ok: bool,
    /// Without a secret.
    pub text: String,
}

/// Asks every provider, in their order.
///
/// # Errors
/// [`SetupError`] if none could be asked.
pub async fn all(config: &GatewayConfig) -> Result<Vec<(Provider, Finding)>, SetupError> {
    let upstream = Upstream::new(config)?;
    let credentials = Credentials::new(&config.providers, &config.resolver);
    let asked = config.providers.providers.iter().map(|provider| async {
        let asked = tokio::time::timeout(WITHIN, ask(provider, &upstream, &credentials)).await;
        let (ok, text) = match asked {
            Ok(Ok(text)) => {
                let warning = catalog::price_warning(provider, &config.providers);
                (true, warning.map_or(text.clone(), |warning| format!("{text}; {warning}")))
            }
            Ok(Err(text)) => (false, text),
            Err(_) => (false, format!("unreachable: no answer within {} s", WITHIN.as_secs())),
        };
        (provider.clone(), Finding { ok, text })
    });
    Ok(futures::future::join_all(asked).await)
}

async fn ask(provider: &Provider, upstream: &Upstream, credentials: &Credentials) -> Result<String, String> {
    let secret = credentials.of(provider).await.map_err(|error| format!("no credential: {error}"))?;
    let path = match provider.dialect {
        Dialect::Anthropic | Dialect::Responses | Dialect::Chat => "/v1/models",
        Dialect::Gemini => "/v1beta/models",
        Dialect::Ollama => "/api/tags",
    };
    let mut out = upstream::provider_headers(provider, secret.as_ref());
    headers::to_provider(provider.dialect, &HeaderMap::new(), false, &mut out);
    let answer = upstream.send(provider, Method::GET, path, out, bytes::Bytes::new()).await;
    let answer = answer.map_err(|error| match error {
        SendError::Setup(problem) => format!("not usable: {problem}"),
        error @ (SendError::Connect(_) | SendError::Broken(_)) => format!("unreachable: {error}"),
    })?;
    let status = answer.status().as_u16();
    let document =
        if status == 400 { relay::short_document(answer, &mut Content::default()).await } else { None };
    if status != 402 && answer::is_about_the_key(provider.dialect, status, document.as_deref()) {
        return Err(format!("reachable, credential refused (HTTP {status})"));
    }
    let credential = if secret.is_some() { "credential accepted" } else { "no credential wanted" };
    match status {
        200..=299 => Ok(format!("reachable, {credential}")),
        // Some have no such list; they would have asked for a credential first, mostly.
        404 | 405 => {
            Ok(format!("reachable; has no list of models (HTTP {status}), so its credential is untried"))
        }
        429 => Ok(format!("reachable, {credential}, asks to slow down (HTTP 429)")),
        300..=399 => Err(format!("redirects (HTTP {status}), which is not followed: is base_url right?")),
        _ => Err(format!("reachable, but reports a failure (HTTP {status})")),
    }
}
