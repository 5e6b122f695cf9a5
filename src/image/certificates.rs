//! Certificates that a build needs to reach package registries through a proxy that inspects TLS.
//!
//! They go in as a file of the build context, which a Dockerfile takes into a stage that is left behind (`COPY
//! kage-build-ca.pe[m] …`: the pattern lets it be missing). A certificate is no secret, so that this needs neither
//! build secrets nor BuildKit, and works with every engine.

use std::fs;
use std::path::Path;

use crate::image::error::ImageError;

/// The file's name in the build context.
pub const FILE_NAME: &str = "kage-build-ca.pem";

/// What a Dockerfile that takes the file mentions.
const MENTION: &str = "kage-build-ca";

const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// PEM text with at least one certificate, and no private key.
#[derive(Debug, Clone)]
pub struct Certificates(String);

impl Certificates {
    /// # Errors
    /// [`ImageError::File`], or [`ImageError::Certificates`] for a file that is something else.
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let file = |error| ImageError::File { path: path.to_owned(), error };
        let refuse = |reason| ImageError::Certificates { path: path.to_owned(), reason };
        if fs::metadata(path).map_err(file)?.len() > MAX_BYTES {
            return Err(refuse("it is larger than 4 MiB"));
        }
        let text = fs::read_to_string(path).map_err(file)?;
        if text.contains("PRIVATE KEY-----") {
            return Err(refuse("it holds a private key, which no build may see"));
        }
        if !text.contains("-----BEGIN CERTIFICATE-----") {
            return Err(refuse("it holds no certificate (PEM)"));
        }
        Ok(Self(text))
    }

    pub fn pem(&self) -> &str {
        &self.0
    }
}

/// Whether a folder's Dockerfile takes the file. To any other it would be one more file that `COPY .` carries along.
///
/// # Errors
/// [`ImageError::File`].
pub fn wanted(folder: &Path) -> Result<bool, ImageError> {
    let path = folder.join("Dockerfile");
    let text = fs::read_to_string(&path).map_err(|error| ImageError::File { path, error })?;
    Ok(text.contains(MENTION))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_certificates_and_nothing_else() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("ca.pem");
        let read = |text: &str| {
            fs::write(&path, text).expect("write");
            Certificates::read(&path).map(|good| good.pem().to_owned()).map_err(|error| error.to_string())
        };
        let good = "# ours\n-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";
        assert_eq!(read(good).as_deref(), Ok(good));
        assert!(read("hello").expect_err("no certificate").contains("no certificate"));
        let key = format!("{good}-----BEGIN PRIVATE KEY-----\n");
        assert!(read(&key).expect_err("a key").contains("private key"));
        assert!(read(&"x".repeat(5 << 20)).expect_err("large").contains("4 MiB"));
    }
}
