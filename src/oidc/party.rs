//! Sends a browser to the provider, and finds out who comes back.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use openidconnect::core::{
    CoreAuthenticationFlow, CoreClient, CoreClientAuthMethod, CoreIdToken, CoreIdTokenClaims,
    CoreIdTokenVerifier, CoreTokenResponse,
};
use openidconnect::{
    AccessToken, AccessTokenHash, AuthType, AuthorizationCode, ClaimsVerificationError, ClientId,
    ClientSecret, CsrfToken, EndpointMaybeSet, EndpointNotSet, EndpointSet, Nonce, OAuth2TokenResponse as _,
    PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RequestTokenError, Scope, SignatureVerificationError,
    TokenResponse as _,
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::Url;

use crate::domain::person::{Identity, shown_name};
use crate::oidc::claims;
use crate::oidc::client::{Http, HttpError};
use crate::oidc::error::{OidcError, Refusal};
use crate::oidc::provider::{Known, Provider};
use crate::secret::watched::Secret;

/// How far the provider's clock may be from ours, or its answer on the way.
const SKEW_SECS: i64 = 300;

/// Who we are, and at which provider.
pub struct Options {
    /// Exactly as the provider spells it.
    pub issuer: String,
    pub client_id: String,
    pub client_secret: Secret,
    pub redirect_url: Url,
    /// Asked for beside `openid`.
    pub scopes: Vec<String>,
    /// The claim whose values are wanted: a name, or a JSON pointer.
    pub claim: String,
    /// PEM certificates that are trusted beside the system's.
    pub ca: Option<Vec<u8>>,
    /// Takes plain HTTP on loopback.
    pub plain_http: bool,
    /// For one answer.
    pub within: Duration,
}

/// What is made for one sign-in, and known to its browser alone.
pub struct Challenge {
    pub state: SecretString,
    pub nonce: SecretString,
    pub verifier: SecretString,
}

/// Somebody whom the provider vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub identity: Identity,
    pub name: String,
    /// Of the claim that is asked about.
    pub values: Vec<String>,
}

type Client = CoreClient<
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

pub struct RelyingParty {
    options: Options,
    provider: Provider,
}

impl std::fmt::Debug for RelyingParty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RelyingParty({} at {})", self.options.client_id, self.options.issuer)
    }
}

impl RelyingParty {
    /// # Errors
    /// [`OidcError::Setup`].
    pub fn new(options: Options) -> Result<Self, OidcError> {
        let http = Http::new(options.ca.as_deref(), options.within, options.plain_http)?;
        let provider = Provider::new(&options.issuer, http)?;
        Ok(Self { options, provider })
    }

    /// Where a browser goes to sign in.
    ///
    /// # Errors
    /// [`OidcError`] but [`OidcError::Refused`].
    pub async fn authorize_url(&self, challenge: &Challenge) -> Result<Url, OidcError> {
        let known = self.provider.known().await?;
        let client = self.client(&known)?;
        let text = |secret: &SecretString| secret.expose_secret().to_owned();
        let verifier = PkceCodeVerifier::new(text(&challenge.verifier));
        let (state, nonce) = (CsrfToken::new(text(&challenge.state)), Nonce::new(text(&challenge.nonce)));
        let (url, _, _) = client
            .authorize_url(CoreAuthenticationFlow::AuthorizationCode, move || state, move || nonce)
            .add_scopes(self.options.scopes.iter().cloned().map(Scope::new))
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier))
            .url();
        Ok(url)
    }

    /// Checks that an answer to a browser is this provider's (RFC 9207): else a code of another one would be shown here.
    ///
    /// # Errors
    /// [`OidcError`].
    pub async fn check_answer_issuer(&self, issuer: Option<&str>) -> Result<(), OidcError> {
        let known = self.provider.known().await?;
        let said = known.metadata.additional_metadata().authorization_response_iss_parameter_supported;
        match issuer {
            Some(issuer) if issuer == self.options.issuer => Ok(()),
            None if said != Some(true) => Ok(()),
            _ => Err(OidcError::Refused(Refusal::AnswerIssuer)),
        }
    }

    /// Who it is that came back with a code.
    ///
    /// # Errors
    /// [`OidcError`].
    pub async fn redeem(&self, code: String, challenge: &Challenge) -> Result<Verified, OidcError> {
        let known = self.provider.known().await?;
        let tokens = self.exchange(&known, code, challenge).await?;
        let token = tokens.id_token().ok_or(OidcError::Refused(Refusal::NoToken))?;
        let nonce = Nonce::new(challenge.nonce.expose_secret().to_owned());
        let subject = match self.verify(&known, token, tokens.access_token(), &nonce) {
            Err(ClaimsVerificationError::SignatureVerification(
                SignatureVerificationError::NoMatchingKey,
            )) => {
                let newer = self.provider.newer(&known).await?;
                let newer = newer.ok_or(OidcError::Refused(Refusal::Signature))?;
                self.verify(&newer, token, tokens.access_token(), &nonce)
            }
            verified => verified,
        };
        let subject = subject.map_err(|error| OidcError::Refused(refusal(&error)))?;
        let identity = Identity::new(&self.options.issuer, &subject);
        let identity = identity.ok_or(OidcError::Refused(Refusal::Subject))?;
        let mut all = payload(token).ok_or(OidcError::Refused(Refusal::Token))?;
        let mut values = claims::values(&all, &self.options.claim);
        let endpoint = known.metadata.userinfo_endpoint();
        if values.is_none()
            && let Some(endpoint) = endpoint
        {
            all = self.user_info(endpoint.url(), tokens.access_token(), &subject).await?;
            values = claims::values(&all, &self.options.claim);
        }
        let name = shown_name(claims::name(&all).unwrap_or(&subject));
        Ok(Verified { identity, name, values: values.unwrap_or_default() })
    }

    /// Where the provider ends its own session, if it does.
    ///
    /// # Errors
    /// [`OidcError`] but [`OidcError::Refused`].
    pub async fn end_session_url(&self) -> Result<Option<Url>, OidcError> {
        let known = self.provider.known().await?;
        let url = known.metadata.additional_metadata().end_session_endpoint.clone();
        Ok(url.map(|mut url| {
            url.query_pairs_mut().append_pair("client_id", &self.options.client_id);
            url
        }))
    }

    fn client(&self, known: &Known) -> Result<Client, OidcError> {
        let options = &self.options;
        let secret = options.client_secret.at_use().map_err(|error| OidcError::Setup(error.to_string()))?;
        let redirect = RedirectUrl::from_url(options.redirect_url.clone());
        let client = CoreClient::from_provider_metadata(
            known.metadata.clone(),
            ClientId::new(options.client_id.clone()),
            Some(ClientSecret::new(secret.expose_secret().to_owned())),
        );
        let methods = known.metadata.token_endpoint_auth_methods_supported();
        let in_body = methods.is_some_and(|methods| {
            !methods.contains(&CoreClientAuthMethod::ClientSecretBasic)
                && methods.contains(&CoreClientAuthMethod::ClientSecretPost)
        });
        let how = if in_body { AuthType::RequestBody } else { AuthType::BasicAuth };
        Ok(client.set_redirect_uri(redirect).set_auth_type(how))
    }

    async fn exchange(
        &self,
        known: &Arc<Known>,
        code: String,
        challenge: &Challenge,
    ) -> Result<CoreTokenResponse, OidcError> {
        let client = self.client(known)?;
        let request = client.exchange_code(AuthorizationCode::new(code));
        let request = request.map_err(|_| OidcError::Provider("it has no token endpoint".to_owned()))?;
        let verifier = PkceCodeVerifier::new(challenge.verifier.expose_secret().to_owned());
        request.set_pkce_verifier(verifier).request_async(&self.provider.http).await.map_err(|error| {
            match error {
                RequestTokenError::ServerResponse(_) => OidcError::Refused(Refusal::Code),
                RequestTokenError::Request(error @ (HttpError::TooLarge | HttpError::Url)) => {
                    OidcError::Provider(error.to_string())
                }
                RequestTokenError::Request(error) => OidcError::Unavailable(error.to_string()),
                RequestTokenError::Parse(..) | RequestTokenError::Other(_) => {
                    OidcError::Refused(Refusal::NoToken)
                }
            }
        })
    }

    /// The subject of an ID token that is the provider's, for us, of this sign-in and of now.
    fn verify(
        &self,
        known: &Known,
        token: &CoreIdToken,
        access_token: &AccessToken,
        nonce: &Nonce,
    ) -> Result<String, ClaimsVerificationError> {
        let client_id = ClientId::new(self.options.client_id.clone());
        // As a public client: then no signature with a shared secret is taken, whatever else is set.
        let verifier = CoreIdTokenVerifier::new_public_client(
            client_id.clone(),
            known.metadata.issuer().clone(),
            known.keys.clone(),
        )
        .set_allowed_algs(known.algorithms.iter().cloned())
        .set_issue_time_verifier_fn(is_of_now);
        let claims: &CoreIdTokenClaims = token.claims(&verifier, nonce)?;
        if claims.authorized_party().is_some_and(|party| *party != client_id) {
            return Err(ClaimsVerificationError::InvalidAudience("azp".to_owned()));
        }
        if let Some(expected) = claims.access_token_hash() {
            let signed = ClaimsVerificationError::SignatureVerification;
            let algorithm = token.signing_alg().map_err(signed)?;
            let key = token.signing_key(&verifier).map_err(signed)?;
            let hash = AccessTokenHash::from_token(access_token, algorithm, key);
            if !hash.is_ok_and(|hash| hash == *expected) {
                return Err(ClaimsVerificationError::Other(AT_HASH.to_owned()));
            }
        }
        Ok(claims.subject().as_str().to_owned())
    }

    async fn user_info(
        &self,
        endpoint: &Url,
        access_token: &AccessToken,
        subject: &str,
    ) -> Result<Value, OidcError> {
        let refused = || OidcError::Refused(Refusal::UserInfo);
        let request = http::Request::get(endpoint.as_str())
            .header(http::header::ACCEPT, "application/json")
            .header(http::header::AUTHORIZATION, format!("Bearer {}", access_token.secret()))
            .body(Vec::new())
            .map_err(|_| refused())?;
        let answer = self.provider.http.send(request).await;
        let answer = answer.map_err(|error| OidcError::Unavailable(error.to_string()))?;
        let claims: Value = serde_json::from_slice(answer.body()).map_err(|_| refused())?;
        let same = claims.get("sub").and_then(Value::as_str) == Some(subject);
        if answer.status() == http::StatusCode::OK && same { Ok(claims) } else { Err(refused()) }
    }
}

/// Marks an error of our own.
const AT_HASH: &str = "at_hash";

/// It was issued for this sign-in, so a moment ago.
fn is_of_now(issued: DateTime<Utc>) -> Result<(), String> {
    let away = (Utc::now() - issued).num_seconds().abs();
    if away <= SKEW_SECS { Ok(()) } else { Err("iat".to_owned()) }
}

/// All that a token says. To be asked for when it is verified.
fn payload(token: &CoreIdToken) -> Option<Value> {
    let text = token.to_string();
    let bytes = URL_SAFE_NO_PAD.decode(text.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn refusal(error: &ClaimsVerificationError) -> Refusal {
    use SignatureVerificationError as Signature;
    match error {
        ClaimsVerificationError::Expired(_) => Refusal::Time,
        ClaimsVerificationError::InvalidAudience(_) => Refusal::Audience,
        ClaimsVerificationError::InvalidIssuer(_) => Refusal::Issuer,
        ClaimsVerificationError::InvalidNonce(_) => Refusal::Nonce,
        ClaimsVerificationError::InvalidSubject(_) => Refusal::Subject,
        ClaimsVerificationError::Other(what) if what == AT_HASH => Refusal::AccessToken,
        ClaimsVerificationError::SignatureVerification(
            Signature::DisallowedAlg(_) | Signature::UnsupportedAlg(_) | Signature::NoSignature,
        ) => Refusal::Algorithm,
        ClaimsVerificationError::SignatureVerification(_) => Refusal::Signature,
        _ => Refusal::Token,
    }
}
