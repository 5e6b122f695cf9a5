//! Secrets that this host has: values, variables, files.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::secret::error::SecretError;
use crate::secret::source::Source;

/// Bytes of a secret at most.
pub const MOST: usize = 64 * 1024;

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The file that a source is read from, if it is one.
pub fn file_of(source: &Source) -> Option<PathBuf> {
    match source {
        Source::File(path) => Some(path.clone()),
        Source::Environment(name) if value_of(name).is_none() => {
            std::env::var_os(format!("{name}_FILE")).filter(|path| !path.is_empty()).map(PathBuf::from)
        }
        _ => None,
    }
}

/// What a file looks like from outside; `None` if it cannot be looked at.
pub fn stamp(path: &Path) -> Option<Stamp> {
    std::fs::metadata(path).ok().map(|metadata| stamp_of(&metadata))
}

fn stamp_of(metadata: &std::fs::Metadata) -> Stamp {
    Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        bytes: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    }
}

fn value_of(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Reads a value, a variable or a file; `None` for what has to be asked for elsewhere.
///
/// # Errors
/// [`SecretError`] names the place.
pub fn read(source: &Source) -> Option<Result<SecretString, SecretError>> {
    match source {
        Source::Literal(value) => Some(Ok(value.clone())),
        Source::Environment(name) => Some(match (value_of(name), file_of(source)) {
            (Some(value), _) => usable(source, value.as_encoded_bytes()),
            (None, Some(path)) => read_file(source, &path),
            (None, None) => Err(SecretError::NotSet(source.to_string())),
        }),
        Source::File(path) => Some(read_file(source, path)),
        Source::Command(_) | Source::Vault(_) => None,
    }
}

fn read_file(source: &Source, path: &Path) -> Result<SecretString, SecretError> {
    let unreadable = |error| SecretError::Unreadable { place: source.to_string(), error };
    // Not blocking: a FIFO in its place must not hold us up.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(nonblocking).open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(unreadable(std::io::Error::other("it is not a regular file")));
    }
    // Its whole room at once: a buffer that grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(MOST + 1));
    file.take(MOST as u64 + 1).read_to_end(&mut text).map_err(unreadable)?;
    usable(source, &text)
}

/// A secret without the newline that ends a file.
///
/// # Errors
/// [`SecretError::Unusable`] if it is empty, too long, or no text.
pub fn usable(source: &Source, bytes: &[u8]) -> Result<SecretString, SecretError> {
    let text = std::str::from_utf8(bytes).ok().map(|text| text.trim_end_matches(['\r', '\n']));
    match text.filter(|text| !text.is_empty() && text.len() <= MOST && !text.contains('\0')) {
        Some(text) => Ok(text.into()),
        None => Err(SecretError::Unusable(source.to_string())),
    }
}

/// As [`usable`], for a text.
///
/// # Errors
/// [`SecretError::Unusable`].
pub fn checked(source: &Source, text: SecretString) -> Result<SecretString, SecretError> {
    usable(source, text.expose_secret().as_bytes())
}
