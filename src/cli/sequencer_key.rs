//! The log's private key: made once, kept in a file that only its owner reads.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rand::TryRng as _;
use secrecy::{ExposeSecret as _, SecretBox, SecretString};

use crate::trail::note::{Kind, SignerKey};

/// Of a log that nobody gave a name.
const NAME: &str = "kage.local/audit";

/// Where `kage serve` keeps the key of its own log.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("sequencer/key")
}

/// A new key.
///
/// # Errors
/// If the system has no chance to give, or the name cannot be one.
pub fn generate(name: &str, kind: Kind) -> anyhow::Result<SignerKey> {
    let mut seed = SecretBox::new(Box::new([0; 32]));
    let bytes: &mut [u8; 32] = secrecy::ExposeSecretMut::expose_secret_mut(&mut seed);
    rand::rngs::SysRng.try_fill_bytes(bytes).context("the system's random numbers")?;
    Ok(SignerKey::new(name, kind, &seed)?)
}

/// Writes a key where none is.
///
/// # Errors
/// If there is one already, or what the system says.
pub fn write(path: &Path, key: &SignerKey) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{}", key.to_secret().expose_secret())?;
    file.sync_all()
}

/// The key of a `kage serve` that was given none: made at its first start.
///
/// # Errors
/// What the system says.
pub fn of(data_dir: &Path) -> anyhow::Result<SecretString> {
    let path = path(data_dir);
    let read = || fs::read_to_string(&path).map(SecretString::from);
    match read() {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        other => return other.with_context(|| path.display().to_string()),
    }
    if let Some(folder) = path.parent() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| folder.display().to_string())?;
    }
    let key = generate(NAME, Kind::Log)?;
    match write(&path, &key) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| path.display().to_string());
        }
        _ => {}
    }
    tracing::info!(path = %path.display(), public = %key.verifier(), "sequencer.key_made");
    read().with_context(|| path.display().to_string())
}
