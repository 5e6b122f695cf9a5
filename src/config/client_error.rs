//! What can be wrong with the client's configuration.

use std::io;
use std::path::PathBuf;

use crate::secret::error::SecretError;
use crate::secret::source::BadReference;

/// Why there is no usable configuration. Never carries the key.
#[derive(Debug, thiserror::Error)]
pub enum ClientConfigError {
    #[error("the API key: {0}")]
    Reference(#[from] BadReference),
    #[error("the API key: {0}")]
    Secret(#[from] SecretError),
    #[error("{0} is not valid UTF-8")]
    NotUtf8(&'static str),
    #[error("{name}: {why}")]
    Invalid { name: String, why: &'static str },
    #[error("{path}: cannot be read: {source}", path = .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path} is not a regular file", path = .path.display())]
    NotAFile { path: PathBuf },
    #[error(
        "{path} belongs to another user (uid {owner}); it holds a key, so it must be yours: \
         chown {uid} {path} && chmod 600 {path}",
        path = .path.display()
    )]
    NotYours { path: PathBuf, owner: u32, uid: u32 },
    #[error("{path} can be read or written by others (mode {mode:03o}): chmod 600 {path}", path = .path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error(
        "{path}:{line}: not understood; it may have url, key, ca_file, client_cert_file and client_key_file, each = \"…\", nothing else",
        path = .path.display()
    )]
    Malformed { path: PathBuf, line: usize },
    #[error("no API key: set KAGE_API_KEY or KAGE_API_KEY_FILE, or write key = \"…\" to {path} (kage key create makes one)", path = .path.display())]
    NoKey { path: PathBuf },
    #[error(
        "the key would cross the network readable to all, over plain http to {host}: use https, \
         or set KAGE_ALLOW_PLAIN_HTTP=true if something else protects the way"
    )]
    PlainHttp { host: String },
}
