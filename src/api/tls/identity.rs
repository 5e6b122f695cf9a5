//! From files to what a handshake needs: read whole, checked to belong together, and only then used.

use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::api::tls::error::TlsError;
use crate::config::edge::{ClientCertificates, TlsConfig, TlsKey};

/// What the files hold, before anybody understood it.
pub(super) struct Files {
    certificate: Vec<u8>,
    key: SecretString,
    client_ca: Option<Vec<u8>>,
}

/// A certificate with its key, ready to serve.
#[derive(Debug, Clone)]
pub struct Identity {
    pub(in crate::api) server: Arc<ServerConfig>,
    /// Who it says that we are.
    pub subject: String,
    pub not_after: DateTime<Utc>,
}

impl Files {
    /// # Errors
    /// [`TlsError::Unreadable`], [`TlsError::Secret`].
    pub fn read(config: &TlsConfig) -> Result<Self, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })
        };
        let key = match &config.key {
            TlsKey::Secret(secret) => secret.at_use().map_err(|error| TlsError::Secret(error.to_string()))?,
            TlsKey::File(path) => {
                let text = std::fs::read_to_string(path);
                text.map_err(|source| TlsError::Unreadable { path: path.clone(), source })?.into()
            }
        };
        let client_ca = config.clients.as_ref().map(|clients| read(&clients.ca)).transpose()?;
        Ok(Self { certificate: read(&config.certificate)?, key, client_ca })
    }

    /// Tells whether anything has changed.
    pub fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for part in [
            self.certificate.as_slice(),
            self.key.expose_secret().as_bytes(),
            self.client_ca.as_deref().unwrap_or_default(),
        ] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }

    /// # Errors
    /// [`TlsError`] says what is wrong with which file.
    pub fn understand(&self, config: &TlsConfig) -> Result<Identity, TlsError> {
        let path = &config.certificate;
        let chain = certificates(&self.certificate, path)?;
        let (subject, not_after) =
            facts(&chain[0]).ok_or_else(|| TlsError::BadCertificate { path: path.clone() })?;
        let place = match &config.key {
            TlsKey::File(path) => path.display().to_string(),
            TlsKey::Secret(_) => "KAGE_API_TLS_KEY".to_owned(),
        };
        let key = PrivateKeyDer::from_pem_slice(self.key.expose_secret().as_bytes())
            .map_err(|_| TlsError::NoKey { place: place.clone() })?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let builder = match (&config.clients, &self.client_ca) {
            (Some(clients), Some(pem)) => {
                let signers = certificates(pem, &clients.ca)?;
                builder.with_client_cert_verifier(verifier(clients, signers, provider)?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut server = builder.with_single_cert(chain, key).map_err(|source| TlsError::Apart {
            path: path.clone(),
            place,
            source,
        })?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        if config.clients.is_some() {
            // A session that is taken up again would pass for a certificate that has ended meanwhile.
            server.session_storage = Arc::new(NoServerSessionStorage {});
            server.send_tls13_tickets = 0;
        }
        Ok(Identity { server: Arc::new(server), subject, not_after })
    }
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|_| TlsError::BadCertificate { path: path.to_owned() })?;
    if all.is_empty() { Err(TlsError::NoCertificate { path: path.to_owned() }) } else { Ok(all) }
}

fn verifier(
    clients: &ClientCertificates,
    signers: Vec<CertificateDer<'static>>,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let bad = |problem: String| TlsError::BadClientCa { path: clients.ca.clone(), problem };
    let mut roots = RootCertStore::empty();
    for signer in signers {
        roots.add(signer).map_err(|error| bad(error.to_string()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if clients.required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| bad(error.to_string()))
}

/// Whose a certificate is, and until when.
fn facts(certificate: &CertificateDer<'_>) -> Option<(String, DateTime<Utc>)> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let not_after = DateTime::from_timestamp(parsed.validity().not_after.timestamp(), 0)?;
    Some((parsed.subject().to_string(), not_after))
}

/// Most characters of a client's name that are passed on.
const SUBJECT_CHARS: usize = 256;

/// The subject of a client's certificate that a handshake has verified. Its signer chose the text: what could break
/// a line of a log is left out.
pub(in crate::api) fn subject(certificate: &CertificateDer<'_>) -> String {
    let subject = facts(certificate).map_or_else(|| "?".to_owned(), |(subject, _)| subject);
    subject.chars().filter(|c| !c.is_control()).take(SUBJECT_CHARS).collect()
}
