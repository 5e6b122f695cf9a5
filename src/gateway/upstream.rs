//! The way to the providers: one HTTP client each, with the operator's certificates and proxy, and the
//! credential in the header that the provider wants.

use std::collections::HashMap;
use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Method};
use reqwest::{Certificate, Client, Proxy, Response, redirect};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::config::gateway::GatewayConfig;
use crate::config::providers::{AuthHeader, Provider};

/// Connections that could not be made are tried again after these waits: nothing was sent.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(600)];

/// How long a connection is kept for the next call.
const IDLE_CONNECTION: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("KAGE_GATEWAY_CA_FILE {path}: {problem}")]
    Certificates { path: String, problem: String },
}

/// Why there is no answer. Words for the operator's log; the CLI is told less.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("{0}")]
    Setup(String),
    /// Nothing was sent.
    #[error("cannot be reached: {0}")]
    Connect(String),
    /// It may have worked on it.
    #[error("broke off: {0}")]
    Broken(String),
}

pub(super) struct Upstream {
    /// By provider; or why there is none.
    clients: HashMap<String, Result<Client, String>>,
}

impl Upstream {
    pub fn new(config: &GatewayConfig) -> Result<Self, SetupError> {
        // Fails only where one is installed already, which is just as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificates = certificates(config)?;
        let client = |provider: &Provider| {
            let built = build(config, provider, certificates.clone());
            (provider.name.clone(), built.map_err(|error| causes(&error)))
        };
        Ok(Self { clients: config.providers.providers.iter().map(client).collect() })
    }

    /// Whether calls to a provider can be made at all.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn client(&self, provider: &Provider) -> Result<&Client, String> {
        match self.clients.get(&provider.name) {
            Some(Ok(client)) => Ok(client),
            Some(Err(problem)) => Err(problem.clone()),
            None => Err("it is not configured".to_owned()),
        }
    }

    /// Sends a request and waits for the answer's head.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send(
        &self,
        provider: &Provider,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response, SendError> {
        let client = self.client(provider).map_err(SendError::Setup)?;
        let url = address(provider, path).map_err(SendError::Setup)?;
        let mut pauses = PAUSES.iter();
        loop {
            let request =
                client.request(method.clone(), url.clone()).headers(headers.clone()).body(body.clone());
            let error = match request.send().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error.without_url(),
            };
            if !error.is_connect() {
                return Err(SendError::Broken(causes(&error)));
            }
            match pauses.next() {
                Some(pause) => tokio::time::sleep(*pause).await,
                None => return Err(SendError::Connect(causes(&error))),
            }
        }
    }
}

fn certificates(config: &GatewayConfig) -> Result<Vec<Certificate>, SetupError> {
    let Some(path) = &config.ca_file else { return Ok(Vec::new()) };
    let failed = |problem: String| SetupError::Certificates { path: path.display().to_string(), problem };
    let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|error| failed(causes(&error)))?;
    if found.is_empty() { Err(failed("it holds no certificate".to_owned())) } else { Ok(found) }
}

fn build(
    config: &GatewayConfig,
    provider: &Provider,
    certificates: Vec<Certificate>,
) -> Result<Client, reqwest::Error> {
    let connect = provider.connect_secs.map_or(config.connect, Duration::from_secs);
    let builder = Client::builder()
        .user_agent(concat!("kage-gateway/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        // A second sending is decided by us alone, and only where nothing was sent.
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        .tls_certs_merge(certificates)
        // Sooner than servers close theirs: a call on a connection that is just being closed would be lost.
        .pool_idle_timeout(IDLE_CONNECTION)
        .connect_timeout(connect);
    let proxy = match provider.proxy.as_deref() {
        Some("none") => None,
        Some(url) => Some(Proxy::all(url)?),
        None => config.proxy.clone().map(Proxy::all).transpose()?,
    };
    match proxy {
        Some(proxy) => builder.proxy(proxy).build(),
        None => builder.build(),
    }
}

/// The provider's address for a path of the dialect. What a URL parser would read otherwise than it is written
/// is refused.
fn address(provider: &Provider, path: &str) -> Result<Url, String> {
    let base = provider.base_url.as_str().trim_end_matches('/');
    let text = format!("{base}{path}");
    let url = Url::parse(&text).map_err(|error| error.to_string())?;
    if url.as_str() == text { Ok(url) } else { Err("the call's path is not plain".to_owned()) }
}

/// What every request to a provider carries: its own headers and the credential.
pub(super) fn provider_headers(provider: &Provider, credential: Option<&SecretString>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &provider.headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
            headers.insert(name, value);
        }
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    // Usage is read from the answer as it passes.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if let Some(credential) = credential {
        let (name, text) = match provider.auth.unwrap_or(AuthHeader::of_dialect(provider.dialect)) {
            AuthHeader::Bearer => (AUTHORIZATION, format!("Bearer {}", credential.expose_secret())),
            AuthHeader::XApiKey => {
                (HeaderName::from_static("x-api-key"), credential.expose_secret().to_owned())
            }
            AuthHeader::XGoogApiKey => {
                (HeaderName::from_static("x-goog-api-key"), credential.expose_secret().to_owned())
            }
            AuthHeader::ApiKey => (HeaderName::from_static("api-key"), credential.expose_secret().to_owned()),
        };
        // It is printable ASCII: `credential` saw to that.
        if let Ok(mut value) = HeaderValue::from_str(&text) {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    headers
}

/// An error with its causes, in one line.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(base: &str) -> Provider {
        let text =
            format!("[[provider]]\nname = \"p\"\ndialect = \"gemini\"\nbase_url = {base:?}\nfree = true");
        let table: crate::config::providers::Providers = toml::from_str(&text).unwrap();
        table.providers.into_iter().next().unwrap()
    }

    #[test]
    fn a_path_stays_below_its_base() {
        let of = |base: &str, path: &str| address(&provider(base), path).map(String::from);
        assert_eq!(of("https://h.example", "/v1/x?alt=sse"), Ok("https://h.example/v1/x?alt=sse".to_owned()));
        assert_eq!(of("https://h.example/llm/", "/v1/x"), Ok("https://h.example/llm/v1/x".to_owned()));
        for path in ["/v1/../../admin", "/v1/./x", "/v1/a b", "/v1/\\x", "/v1/\tx", "/v1/é"] {
            assert!(of("https://h.example/llm", path).is_err(), "{path}");
        }
    }

    #[test]
    fn the_credential_goes_where_the_vendor_wants_it() {
        let secret = SecretString::from("s");
        let mut google = provider("https://h.example");
        assert_eq!(provider_headers(&google, Some(&secret))["x-goog-api-key"], "s");
        google.auth = Some(AuthHeader::Bearer);
        let headers = provider_headers(&google, Some(&secret));
        assert_eq!(headers["authorization"], "Bearer s");
        assert!(!headers.contains_key("x-goog-api-key") && headers["authorization"].is_sensitive());
        assert!(!provider_headers(&google, None).contains_key("authorization"));
    }
}
