//! The operator's credentials: read where the configuration says, at use, so that a file that was replaced counts
//! from the next call on.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use secrecy::{ExposeSecret, SecretString};

use crate::config::providers::CredentialSource;

/// Bytes of a credential's file.
const MOST: u64 = 64 * 1024;

/// Why there is no credential. Says where it was looked for, never what was there.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("{0} is not set")]
    NotSet(CredentialSource),
    #[error("{source_name}: {error}")]
    Unreadable { source_name: CredentialSource, error: std::io::Error },
    #[error("{0} is empty, too long, or holds other than printable ASCII")]
    Unusable(CredentialSource),
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

#[derive(Default)]
pub(super) struct Credentials {
    files: Mutex<HashMap<PathBuf, (Stamp, SecretString)>>,
}

impl Credentials {
    /// # Errors
    /// [`CredentialError`] names the place.
    pub fn read(&self, source: &CredentialSource) -> Result<SecretString, CredentialError> {
        match source {
            CredentialSource::Environment(name) => {
                let value = std::env::var(name).ok().filter(|value| !value.is_empty());
                // As for every other secret: the variable itself, or a file that it is in.
                let file = std::env::var_os(format!("{name}_FILE")).filter(|_| value.is_none());
                if let Some(path) = file {
                    return self.read_file(source, Path::new(&path));
                }
                usable(source, &value.ok_or_else(|| CredentialError::NotSet(source.clone()))?)
            }
            CredentialSource::File(path) => self.read_file(source, path),
        }
    }

    fn read_file(&self, source: &CredentialSource, path: &Path) -> Result<SecretString, CredentialError> {
        let unreadable = |error| CredentialError::Unreadable { source_name: source.clone(), error };
        let stamp = stamp_of(&std::fs::metadata(path).map_err(unreadable)?);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, secret)) = files.get(path).filter(|(known, _)| *known == stamp) {
            return Ok(secret.clone());
        }
        let file = File::open(path).map_err(unreadable)?;
        let stamp = stamp_of(&file.metadata().map_err(unreadable)?);
        let mut text = String::new();
        file.take(MOST + 1).read_to_string(&mut text).map_err(unreadable)?;
        let secret = usable(source, &text)?;
        files.insert(path.to_owned(), (stamp, secret.clone()));
        Ok(secret)
    }
}

fn stamp_of(metadata: &std::fs::Metadata) -> Stamp {
    Stamp {
        inode: metadata.ino(),
        bytes: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}

fn usable(source: &CredentialSource, text: &str) -> Result<SecretString, CredentialError> {
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() || secret.len() as u64 > MOST || !secret.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(CredentialError::Unusable(source.clone()));
    }
    Ok(SecretString::from(secret))
}

/// Whether a text holds the secret.
pub(super) fn appears_in(secret: &SecretString, text: &[u8]) -> bool {
    memchr::memmem::find(text, secret.expose_secret().as_bytes()).is_some()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_replaced_file_counts_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let source = CredentialSource::File(path.clone());
        let credentials = Credentials::default();
        let missing = credentials.read(&source).unwrap_err().to_string();
        assert!(missing.contains("key"), "{missing}");
        fs::write(&path, "first\n").unwrap();
        assert_eq!(credentials.read(&source).unwrap().expose_secret(), "first");
        assert_eq!(credentials.read(&source).unwrap().expose_secret(), "first");
        // As secrets are rotated: a new file in the place of the old one, of the same length.
        fs::write(folder.path().join("new"), "other\n").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(credentials.read(&source).unwrap().expose_secret(), "other");
        fs::write(&path, "in place").unwrap_or_default();
        assert!(matches!(credentials.read(&source), Err(CredentialError::Unusable(_))));
    }

    #[test]
    fn what_could_break_a_header_is_no_credential() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let credentials = Credentials::default();
        for text in ["", "\n", "two lines\nof it", "a\r\nX-Other: 1", "ümlaut", " space"] {
            fs::write(&path, text).unwrap();
            let error = credentials.read(&CredentialSource::File(path.clone())).unwrap_err().to_string();
            assert!(text.trim().is_empty() || !error.contains(text), "{error}");
        }
        let unset = CredentialSource::Environment("KAGE_TEST_THERE_IS_NO_SUCH".to_owned());
        assert!(matches!(credentials.read(&unset), Err(CredentialError::NotSet(_))));
    }
}
