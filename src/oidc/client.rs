//! Requests to the provider. It is believed about people, not about what it may do to us: answers are bounded in time
//! and size, redirects are not followed, and nothing goes over plain HTTP but to loopback where that is allowed.

use std::time::Duration;

use futures::future::BoxFuture;
use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse};
use reqwest::{Certificate, Client, redirect};
use url::{Host, Url};

use crate::oidc::error::OidcError;

/// Bytes of an answer at most.
const MOST: usize = 512 * 1024;

#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("no answer in time")]
    Late,
    #[error("it cannot be reached")]
    Connect,
    #[error("its answer broke off")]
    Broken,
    #[error("its answer is over {MOST} bytes")]
    TooLarge,
    #[error("it names a URL that is not https")]
    Url,
}

impl From<reqwest::Error> for HttpError {
    fn from(error: reqwest::Error) -> Self {
        if error.is_timeout() {
            Self::Late
        } else if error.is_connect() {
            Self::Connect
        } else {
            Self::Broken
        }
    }
}

pub(super) struct Http {
    client: Client,
    plain_http: bool,
}

impl Http {
    /// # Errors
    /// [`OidcError::Setup`].
    pub fn new(ca: Option<&[u8]>, within: Duration, plain_http: bool) -> Result<Self, OidcError> {
        // Refused where it is there already, which is just as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let setup = |error: reqwest::Error| OidcError::Setup(error.without_url().to_string());
        let certificates = match ca {
            None => Vec::new(),
            Some(pem) => Certificate::from_pem_bundle(pem).map_err(setup)?,
        };
        let client = Client::builder()
            .user_agent(concat!("kage/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .tls_certs_merge(certificates)
            .timeout(within)
            .build()
            .map_err(setup)?;
        Ok(Self { client, plain_http })
    }

    /// Whether a URL that the provider names may be used.
    pub fn allows(&self, url: &Url) -> bool {
        let loopback = match url.host() {
            Some(Host::Domain(host)) => host == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        let plain = url.username().is_empty() && url.password().is_none();
        plain && (url.scheme() == "https" || url.scheme() == "http" && loopback && self.plain_http)
    }

    /// # Errors
    /// [`HttpError`]; a status is none.
    pub async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let url = Url::parse(&request.uri().to_string()).map_err(|_| HttpError::Url)?;
        if !self.allows(&url) {
            return Err(HttpError::Url);
        }
        let request = reqwest::Request::try_from(request)?;
        let mut response = self.client.execute(request).await?;
        let mut answer = http::Response::new(Vec::new());
        *answer.status_mut() = response.status();
        std::mem::swap(answer.headers_mut(), response.headers_mut());
        while let Some(chunk) = response.chunk().await? {
            if answer.body().len() + chunk.len() > MOST {
                return Err(HttpError::TooLarge);
            }
            answer.body_mut().extend_from_slice(&chunk);
        }
        Ok(answer)
    }
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = HttpError;
    type Future = BoxFuture<'c, Result<HttpResponse, HttpError>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.send(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_asked() {
        let allows = |plain_http, url: &str| {
            let http = Http::new(None, Duration::from_secs(1), plain_http).expect("a client");
            http.allows(&Url::parse(url).expect("a URL"))
        };
        for url in ["http://id.example/", "ftp://id.example/", "https://a@id.example/", "file:///etc/passwd"]
        {
            assert!(!allows(true, url) && !allows(false, url), "{url}");
        }
        assert!(allows(false, "https://id.example/x") && allows(true, "http://127.0.0.1:1/x"));
        assert!(!allows(false, "http://127.0.0.1:1/x"));
    }
}
