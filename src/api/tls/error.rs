//! What is wrong with a certificate, a key or the signers of clients. No text of a key is ever in it.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {source}", path = path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path} has no certificate in PEM form", path = path.display())]
    NoCertificate { path: PathBuf },
    #[error("{path} holds a certificate that cannot be understood", path = path.display())]
    BadCertificate { path: PathBuf },
    #[error("{place} has no private key in PEM form")]
    NoKey { place: String },
    #[error("the certificate in {path} and the key in {place} do not belong together: {source}", path = path.display())]
    Apart { path: PathBuf, place: String, source: rustls::Error },
    #[error("{path} cannot be used as the signers of clients: {problem}", path = path.display())]
    BadClientCa { path: PathBuf, problem: String },
    #[error("KAGE_API_TLS_KEY: {0}")]
    Secret(String),
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}
