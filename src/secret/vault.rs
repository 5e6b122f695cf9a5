//! HashiCorp Vault and OpenBao: secrets of a KV store of version 2, with a token or by AppRole.
//!
//! No word of an answer is ever repeated: it may hold a secret. What is told of a failure is its status.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use reqwest::{Certificate, Client, Method, RequestBuilder, Response, StatusCode, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, de};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;
use zeroize::Zeroizing;

use crate::secret::command::Commands;
use crate::secret::local;
use crate::secret::source::{Source, VaultPath};

/// Bytes of an answer at most.
const MOST: usize = 1 << 20;

/// Where it is, and who we are there.
#[derive(Debug, Clone)]
pub struct VaultOptions {
    pub address: Url,
    pub namespace: Option<String>,
    /// PEM certificates that are trusted beside the system's.
    pub ca: Option<Vec<u8>>,
    pub auth: VaultAuth,
    /// For one answer.
    pub within: Duration,
}

/// Read at every login, so that they can be replaced.
#[derive(Debug, Clone)]
pub enum VaultAuth {
    Token(Source),
    AppRole { mount: String, role_id: Source, secret_id: Source },
}

pub struct Vault {
    client: Client,
    options: VaultOptions,
    commands: Commands,
    session: Mutex<Option<Session>>,
}

/// A token that the server took.
struct Session {
    token: SecretString,
    renewable: bool,
    /// When it ends, and when to see to it.
    ends: Option<(Instant, Instant)>,
}

impl Session {
    fn new(token: SecretString, renewable: bool, seconds: u64) -> Self {
        let now = Instant::now();
        let lease = Duration::from_secs(seconds);
        // Two thirds of its time: there is time left to log in anew.
        let ends = (seconds > 0).then(|| (now + lease, now + lease * 2 / 3));
        Self { token, renewable, ends }
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("address", &self.options.address.as_str()).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Authenticated {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    client_token: SecretString,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

#[derive(Deserialize)]
struct Data<T> {
    data: T,
}

#[derive(Deserialize)]
struct TokenFacts {
    #[serde(default)]
    ttl: u64,
    #[serde(default)]
    renewable: bool,
}

type Secrets = Data<Data<HashMap<String, Field>>>;

/// A text, or something else.
struct Field(Option<SecretString>);

impl<'de> Deserialize<'de> for Field {
    /// Straight into a secret: a value in between would be left in memory.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> de::Visitor<'de> for FieldVisitor {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Field, E> {
        Ok(Field(Some(text.into())))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Field, E> {
        Ok(Field(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Field, E> {
        Ok(Field(None))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Field, E> {
        Ok(Field(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Field, E> {
        Ok(Field(None))
    }

    fn visit_unit<E>(self) -> Result<Field, E> {
        Ok(Field(None))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<Field, A::Error> {
        while items.next_element::<de::IgnoredAny>()?.is_some() {}
        Ok(Field(None))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Field, A::Error> {
        while entries.next_entry::<de::IgnoredAny, de::IgnoredAny>()?.is_some() {}
        Ok(Field(None))
    }
}

/// Why a request was not answered as wished.
enum Problem {
    /// The token counts for nothing, or not for this.
    Forbidden,
    Other(String),
}

impl From<Problem> for String {
    fn from(problem: Problem) -> Self {
        match problem {
            Problem::Forbidden => "permission denied (HTTP 403)".to_owned(),
            Problem::Other(text) => text,
        }
    }
}

impl Vault {
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// What is wrong with the options, in words.
    pub fn new(options: VaultOptions, commands: Commands) -> Result<Self, String> {
        // Fails only where one is installed already, which is just as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificates = match &options.ca {
            Some(pem) => Certificate::from_pem_bundle(pem).map_err(|_| "its CA file is no PEM".to_owned())?,
            None => Vec::new(),
        };
        let client = Client::builder()
            .user_agent(concat!("kage/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .tls_certs_merge(certificates)
            // Few requests; and the first of them are made in another runtime.
            .pool_max_idle_per_host(0)
            .timeout(options.within)
            .build()
            .map_err(|error| error.without_url().to_string())?;
        Ok(Self { client, options, commands, session: Mutex::new(None) })
    }

    /// Reads a field. A token that is not taken any more is replaced by a new login, once.
    ///
    /// # Errors
    /// Why not, in words without a secret.
    pub async fn read(&self, path: &VaultPath) -> Result<SecretString, String> {
        let mut session = self.session.lock().await;
        for last in [false, true] {
            let token = self.token(&mut session).await?;
            let segments = path.mount.split('/').chain(["data"]).chain(path.path.split('/'));
            let request = self.request(Method::GET, segments, Some(&token))?;
            match self.answer::<Secrets>(request).await {
                Ok(found) => {
                    let field = found.data.data.into_iter().find(|(name, _)| *name == path.field);
                    return match field {
                        Some((_, Field(Some(secret)))) => Ok(secret),
                        Some(_) => Err("the field is no text".to_owned()),
                        None => Err("it has no such field".to_owned()),
                    };
                }
                Err(Problem::Forbidden) if !last => *session = None,
                Err(problem) => return Err(problem.into()),
            }
        }
        Err(Problem::Forbidden.into())
    }

    /// Renews the token when two thirds of its time are over; one that cannot be renewed is replaced by a new login.
    ///
    /// # Errors
    /// Why neither could be done.
    pub async fn keep_alive(&self) -> Result<(), String> {
        let mut session = self.session.lock().await;
        let now = Instant::now();
        let Some(current) = session.as_mut() else { return Ok(()) };
        if current.ends.is_none_or(|(_, at)| now < at) {
            return Ok(());
        }
        if current.renewable {
            let segments = ["auth", "token", "renew-self"].into_iter();
            let request = self.request(Method::POST, segments, Some(&current.token))?.json(&json!({}));
            match self.answer::<Authenticated>(request).await {
                // What is left is a third at most: its longest life is near, and renewing again would not help.
                Ok(Authenticated { auth }) if auth.lease_duration > 0 => {
                    *current = Session::new(current.token.clone(), auth.renewable, auth.lease_duration);
                    return Ok(());
                }
                Ok(_) | Err(Problem::Forbidden) => {}
                Err(problem) => {
                    self.later(current);
                    return Err(problem.into());
                }
            }
        }
        match self.login().await {
            Ok(new) => *session = Some(new),
            Err(problem) => {
                self.later(current);
                return Err(problem);
            }
        }
        Ok(())
    }

    /// Not at once again.
    fn later(&self, session: &mut Session) {
        if let Some((_, at)) = &mut session.ends {
            *at = Instant::now() + self.options.within;
        }
    }

    async fn token(&self, session: &mut Option<Session>) -> Result<SecretString, String> {
        let now = Instant::now();
        if let Some(current) = session.as_ref().filter(|it| it.ends.is_none_or(|(end, _)| now < end)) {
            return Ok(current.token.clone());
        }
        let new = self.login().await?;
        let token = new.token.clone();
        *session = Some(new);
        Ok(token)
    }

    async fn login(&self) -> Result<Session, String> {
        match &self.options.auth {
            VaultAuth::Token(source) => {
                let token = self.own(source).await?;
                let request =
                    self.request(Method::GET, ["auth", "token", "lookup-self"].into_iter(), Some(&token))?;
                let facts = match self.answer::<Data<TokenFacts>>(request).await {
                    Ok(facts) => facts.data,
                    // A policy may forbid the question alone; whether the token counts is seen when it is used.
                    Err(Problem::Forbidden) => TokenFacts { ttl: 0, renewable: false },
                    Err(problem) => return Err(format!("its token: {}", String::from(problem))),
                };
                Ok(Session::new(token, facts.renewable, facts.ttl))
            }
            VaultAuth::AppRole { mount, role_id, secret_id } => {
                let (role, secret) = (self.own(role_id).await?, self.own(secret_id).await?);
                let segments = ["auth"].into_iter().chain(mount.split('/')).chain(["login"]);
                let body = json!({ "role_id": role.expose_secret(), "secret_id": secret.expose_secret() });
                let request = self.request(Method::POST, segments, None)?.json(&body);
                let Authenticated { auth } = self
                    .answer(request)
                    .await
                    .map_err(|problem| format!("the login by AppRole: {}", String::from(problem)))?;
                if auth.client_token.expose_secret().is_empty() {
                    return Err("the login by AppRole: it gives no token".to_owned());
                }
                Ok(Session::new(auth.client_token, auth.renewable, auth.lease_duration))
            }
        }
    }

    /// What we authenticate with.
    async fn own(&self, source: &Source) -> Result<SecretString, String> {
        let read = match (local::read(source), source) {
            (Some(read), _) => read,
            (None, Source::Command(words)) => self.commands.read(source, words).await,
            (None, _) => return Err("its own credential cannot be in it".to_owned()),
        };
        read.map_err(|error| error.to_string())
    }

    fn request<'a>(
        &self,
        method: Method,
        path: impl Iterator<Item = &'a str>,
        token: Option<&SecretString>,
    ) -> Result<RequestBuilder, String> {
        let mut url = self.options.address.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        // Asks an agent in between for a header that no page in a browser can be made to send.
        let mut request = self.client.request(method, url).header("X-Vault-Request", "true");
        if let Some(namespace) = &self.options.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        let Some(token) = token else { return Ok(request) };
        let mut value = http::HeaderValue::from_str(token.expose_secret())
            .map_err(|_| "its token is none: it holds more than printable ASCII".to_owned())?;
        value.set_sensitive(true);
        Ok(request.header("X-Vault-Token", value))
    }

    async fn answer<T: de::DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Problem> {
        let broken = |error: reqwest::Error| {
            let what = if error.is_timeout() {
                "no answer in time"
            } else if error.is_connect() {
                "cannot be reached"
            } else {
                "its answer broke off"
            };
            Problem::Other(what.to_owned())
        };
        let response = request.send().await.map_err(broken)?;
        status(response.status())?;
        let body = body(response).await.map_err(broken)?;
        body.as_deref()
            .and_then(|body| serde_json::from_slice(body).ok())
            .ok_or_else(|| Problem::Other("its answer is not understood".to_owned()))
    }
}

/// What a status says, in our words.
fn status(status: StatusCode) -> Result<(), Problem> {
    let words = match status.as_u16() {
        200 => return Ok(()),
        403 => return Err(Problem::Forbidden),
        400 => "it refuses the request",
        404 => "there is no such secret, or its last version is deleted",
        429 | 472 | 473 => "it is a standby and does not answer",
        503 => "it is sealed, or down for maintenance",
        _ => "it fails",
    };
    Err(Problem::Other(format!("{words} (HTTP {})", status.as_u16())))
}

/// `None`: too long.
async fn body(mut response: Response) -> Result<Option<Zeroizing<Vec<u8>>>, reqwest::Error> {
    let mut body = Zeroizing::new(Vec::with_capacity(MOST));
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MOST {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}
