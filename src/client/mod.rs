//! A typed client for the REST API.
//!
//! [`Client`] holds the connection; its calls are in [`tasks`], [`artifacts`], [`repositories`],
//! [`audit`], [`security_events`] and [`health`], one file per kind of thing. [`follow`] watches a task's events across broken
//! connections without a gap and without a duplicate.
//!
//! The server is trusted to be ours, but what it passes on comes from hostile agents: every answer is
//! bounded in size and time, and redirects are not followed, because the key would go along.

pub mod artifacts;
pub mod audit;
pub mod backoff;
pub mod continuity;
pub mod download;
pub mod error;
pub mod event;
pub mod follow;
pub mod health;
pub mod repositories;
pub mod request;
pub mod security_events;
pub mod sse;
pub mod tasks;

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::client::error::ClientError;
use crate::config::client::ClientConfig;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// How patient the client is.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a connection to be made.
    pub connect: Duration,
    /// Without a single byte. The server's heartbeats come every 15 s.
    pub idle: Duration,
    /// For a whole answer that is not a stream.
    pub answer: Duration,
    /// The first wait before a repeat; later ones double.
    pub first_delay: Duration,
    /// The longest wait before a repeat.
    pub most_delay: Duration,
    /// How long a request that may be repeated is repeated.
    pub repeat_for: Duration,
    /// How long a stream may stay without a good connection.
    pub reconnect_for: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(45),
            answer: Duration::from_secs(120),
            first_delay: Duration::from_millis(250),
            most_delay: Duration::from_secs(10),
            repeat_for: Duration::from_secs(20),
            reconnect_for: Duration::from_secs(300),
        }
    }
}

/// A connection to one server with one key. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    key: SecretString,
    patience: Patience,
}

impl Client {
    /// Sets up a client; nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError::BadKey`] or [`ClientError::Setup`].
    pub fn new(config: &ClientConfig, patience: Patience) -> Result<Self, ClientError> {
        // Fails only where a provider is installed already, which is just as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let text = config.key.expose_secret().trim();
        let mut key = HeaderValue::from_str(text).map_err(|_| ClientError::BadKey)?;
        if text.is_empty() {
            return Err(ClientError::BadKey);
        }
        key.set_sensitive(true);
        let mut builder = reqwest::Client::builder();
        if let Some(pem) = &config.ca {
            let unusable = || ClientError::Setup("KAGE_CA_FILE holds no certificate in PEM form".to_owned());
            let signers = reqwest::Certificate::from_pem_bundle(pem).map_err(|_| unusable())?;
            if signers.is_empty() {
                return Err(unusable());
            }
            builder = builder.tls_certs_merge(signers);
        }
        let setup = |problem: String| ClientError::Setup(problem);
        let mut apart = None;
        if let Some(identity) = &config.identity {
            let unusable =
                "KAGE_CLIENT_CERT_FILE and KAGE_CLIENT_KEY_FILE hold no certificate with its key in PEM form";
            apart = Some(unusable.to_owned());
            let pair = zeroize::Zeroizing::new(
                [&identity.certificate, b"\n".as_slice(), identity.key.expose_secret().as_bytes()].concat(),
            );
            let identity = reqwest::Identity::from_pem(&pair).map_err(|_| setup(unusable.to_owned()))?;
            builder = builder.identity(identity);
        }
        let http = builder
            .default_headers(HeaderMap::from_iter([(API_KEY, key)]))
            .user_agent(concat!("kage/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(patience.connect)
            .read_timeout(patience.idle)
            .build()
            .map_err(|error| setup(apart.unwrap_or_else(|| error.to_string())))?;
        Ok(Self { http, base: config.url.clone(), key: SecretString::from(text), patience })
    }
}
