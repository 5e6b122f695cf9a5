//! What the provider says of itself, and its keys. Both are kept for an hour; a key that is not known asks for the keys
//! anew, at most once a minute, whoever shows it.

use std::sync::Arc;
use std::time::Duration;

use openidconnect::core::{
    CoreAuthDisplay, CoreClaimName, CoreClaimType, CoreClientAuthMethod, CoreGrantType, CoreJsonWebKey,
    CoreJsonWebKeySet, CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm,
    CoreJwsSigningAlgorithm, CoreResponseMode, CoreResponseType, CoreSubjectIdentifierType,
};
use openidconnect::{AdditionalProviderMetadata, DiscoveryError, IssuerUrl, JsonWebKeySet, ProviderMetadata};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use crate::oidc::client::{Http, HttpError};
use crate::oidc::error::OidcError;

/// How long discovery is believed.
const KEPT: Duration = Duration::from_secs(3600);
/// How long a provider is left alone that could not be asked.
const LEFT_ALONE: Duration = Duration::from_secs(3);
/// Between two looks for a key that is not known.
const KEYS_EVERY: Duration = Duration::from_secs(60);

/// Signatures that only the provider can make. With a shared secret (HS256 and the like) we could make them too, and so
/// could whoever gets hold of it.
const ALGORITHMS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

/// What openidconnect does not know of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct More {
    #[serde(default)]
    pub end_session_endpoint: Option<Url>,
    /// RFC 9207.
    #[serde(default)]
    pub authorization_response_iss_parameter_supported: Option<bool>,
}

impl AdditionalProviderMetadata for More {}

pub(super) type Metadata = ProviderMetadata<
    More,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;

#[derive(Debug, Clone)]
pub(super) struct Known {
    pub metadata: Metadata,
    pub keys: CoreJsonWebKeySet,
    /// Those of ours that the provider signs with.
    pub algorithms: Vec<CoreJwsSigningAlgorithm>,
    /// Of the keys.
    generation: u64,
}

#[derive(Default)]
struct State {
    known: Option<(Arc<Known>, Instant)>,
    failed: Option<Instant>,
    /// When keys were last asked for because one was not known.
    looked: Option<Instant>,
}

pub(super) struct Provider {
    issuer: IssuerUrl,
    pub http: Http,
    /// Whoever asks waits for who asks already: one request at a time.
    state: Mutex<State>,
}

impl Provider {
    /// # Errors
    /// [`OidcError::Setup`] if the issuer is no URL.
    pub fn new(issuer: &str, http: Http) -> Result<Self, OidcError> {
        let issuer =
            IssuerUrl::new(issuer.to_owned()).map_err(|error| OidcError::Setup(error.to_string()))?;
        Ok(Self { issuer, http, state: Mutex::default() })
    }

    /// # Errors
    /// [`OidcError::Unavailable`], [`OidcError::Provider`].
    pub async fn known(&self) -> Result<Arc<Known>, OidcError> {
        let mut state = self.state.lock().await;
        if let Some((known, at)) = &state.known
            && at.elapsed() < KEPT
        {
            return Ok(Arc::clone(known));
        }
        if state.failed.is_some_and(|at| at.elapsed() < LEFT_ALONE) {
            return Err(OidcError::Unavailable("it could not be a moment ago".to_owned()));
        }
        let generation = state.known.as_ref().map_or(0, |(known, _)| known.generation + 1);
        match self.discover(generation).await {
            Ok(known) => {
                let known = Arc::new(known);
                state.known = Some((Arc::clone(&known), Instant::now()));
                Ok(known)
            }
            Err(error) => {
                state.failed = Some(Instant::now());
                Err(error)
            }
        }
    }

    /// Other keys than those that did not do. `None` if there are none, or it is too soon to ask.
    ///
    /// # Errors
    /// [`OidcError::Unavailable`], [`OidcError::Provider`].
    pub async fn newer(&self, tried: &Known) -> Result<Option<Arc<Known>>, OidcError> {
        let mut state = self.state.lock().await;
        let Some((known, at)) = state.known.clone() else { return Ok(None) };
        if known.generation != tried.generation {
            return Ok(Some(known));
        }
        if state.looked.is_some_and(|looked| looked.elapsed() < KEYS_EVERY) {
            return Ok(None);
        }
        state.looked = Some(Instant::now());
        let keys = JsonWebKeySet::fetch_async(known.metadata.jwks_uri(), &self.http).await.map_err(broken)?;
        let newer = Known { keys, generation: known.generation + 1, ..Known::clone(&known) };
        let newer = Arc::new(newer);
        state.known = Some((Arc::clone(&newer), at));
        Ok(Some(newer))
    }

    async fn discover(&self, generation: u64) -> Result<Known, OidcError> {
        let metadata = Metadata::discover_async(self.issuer.clone(), &self.http).await.map_err(broken)?;
        let more = metadata.additional_metadata();
        let urls = [
            Some(metadata.authorization_endpoint().url()),
            metadata.token_endpoint().map(|endpoint| endpoint.url()),
            metadata.userinfo_endpoint().map(|endpoint| endpoint.url()),
            more.end_session_endpoint.as_ref(),
        ];
        if !urls.into_iter().flatten().all(|url| self.http.allows(url)) {
            return Err(OidcError::Provider(HttpError::Url.to_string()));
        }
        if metadata.token_endpoint().is_none() {
            return Err(OidcError::Provider("it has no token endpoint".to_owned()));
        }
        let offered = metadata.id_token_signing_alg_values_supported();
        let algorithms: Vec<_> =
            ALGORITHMS.into_iter().filter(|algorithm| offered.contains(algorithm)).collect();
        if algorithms.is_empty() {
            return Err(OidcError::Provider("it signs in no way that we take".to_owned()));
        }
        let keys = metadata.jwks().clone();
        Ok(Known { metadata, keys, algorithms, generation })
    }
}

/// In our words: what it sent is not repeated.
fn broken(error: DiscoveryError<HttpError>) -> OidcError {
    match error {
        DiscoveryError::Request(error @ (HttpError::TooLarge | HttpError::Url)) => {
            OidcError::Provider(error.to_string())
        }
        DiscoveryError::Request(error) => OidcError::Unavailable(error.to_string()),
        DiscoveryError::Response(status, ..) if status != http::StatusCode::OK => {
            OidcError::Unavailable(format!("it answers with {status}"))
        }
        DiscoveryError::Validation(_) => OidcError::Provider("it calls itself by another name".to_owned()),
        _ => OidcError::Provider("its description is not understood".to_owned()),
    }
}
