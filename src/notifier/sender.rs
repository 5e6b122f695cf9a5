//! One try: a POST to one receiver. What comes back is a status; the rest is read within bounds, and only by the test command.

use std::time::Duration;

use chrono::Utc;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Certificate, Client, Response, redirect};

use tokio::time::Instant;

use crate::config::webhooks::Hook;
use crate::notifier::error::NotifierError;
use crate::notifier::message::Message;

/// Of an answer's body.
const BODY_BYTES: usize = 4096;
/// For a connection.
const CONNECT: Duration = Duration::from_secs(5);

pub struct Sender {
    hook: Hook,
    client: Client,
    within: Duration,
}

/// What a receiver answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// How long it wants to be left alone.
    pub wished: Option<Duration>,
    /// The beginning of it, as it came: from a stranger.
    pub body: Vec<u8>,
}

impl Sender {
    /// # Errors
    /// [`NotifierError`]: its certificates cannot be used.
    pub fn new(hook: Hook, within: Duration) -> Result<Self, NotifierError> {
        let wrong = |problem: String| NotifierError::Hook { hook: hook.name.clone(), problem };
        // Fails only where one is installed already, which is just as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificates = hook.ca.as_deref().map(Certificate::from_pem_bundle).transpose();
        let certificates = certificates
            .ok()
            .filter(|found| found.as_ref().is_none_or(|found| !found.is_empty()))
            .ok_or_else(|| wrong("ca_file holds no certificate in PEM form".to_owned()))?;
        // The environment's own proxies count for nothing, as everywhere here. A connection is not kept: events are rare.
        let client = Client::builder()
            .user_agent(concat!("kage-notifier/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT)
            .tls_certs_merge(certificates.unwrap_or_default())
            .build()
            .map_err(|error| wrong(error.to_string()))?;
        Ok(Self { hook, client, within })
    }

    pub fn name(&self) -> &str {
        &self.hook.name
    }

    /// Sends it once. Whatever the receiver does, this ends within the time of a try.
    ///
    /// # Errors
    /// Why there is no answer, without the URL, which may hold a secret.
    pub async fn send(&self, message: &Message) -> Result<Answer, String> {
        let mut secrets = Vec::new();
        for secret in &self.hook.secrets {
            secrets.push(secret.get().await.map_err(|error| error.to_string())?);
        }
        let at = Utc::now().timestamp();
        let signatures = message.signatures(&secrets, at)?;
        let request = self
            .client
            .post(self.hook.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(standardwebhooks::HEADER_WEBHOOK_ID, message.id.to_string())
            .header(standardwebhooks::HEADER_WEBHOOK_TIMESTAMP, at)
            .header(standardwebhooks::HEADER_WEBHOOK_SIGNATURE, signatures)
            .body(message.body.clone());
        let deadline = Instant::now() + self.within;
        let answer = tokio::time::timeout_at(deadline, request.send()).await;
        let late = |_| format!("no answer within {} s", self.within.as_secs());
        let mut answer = answer.map_err(late)?.map_err(|error| why(&error))?;
        let status = answer.status().as_u16();
        let wished = answer.headers().get(RETRY_AFTER).and_then(|value| secs(value.to_str().ok()?));
        // The status is what counts: a body that breaks off, or never ends, changes nothing.
        let mut body = Vec::new();
        let _ = tokio::time::timeout_at(deadline, read(&mut answer, &mut body)).await;
        Ok(Answer { status, wished, body })
    }
}

/// The whole chain, in one line: reqwest itself says only that sending failed.
fn why(error: &reqwest::Error) -> String {
    let mut words = String::new();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = cause {
        words = error.to_string();
        cause = error.source();
    }
    if words.is_empty() {
        "it cannot be reached".to_owned()
    } else {
        format!("it cannot be reached: {words}")
    }
}

fn secs(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_secs)
}

async fn read(answer: &mut Response, body: &mut Vec<u8>) {
    while let Ok(Some(chunk)) = answer.chunk().await {
        let left = BODY_BYTES - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(left)]);
        if body.len() == BODY_BYTES {
            return;
        }
    }
}
