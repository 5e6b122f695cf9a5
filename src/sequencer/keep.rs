//! The log's keys: the one that signs, and those that signed before it.

use crate::config::sequencer::SequencerConfig;
use crate::sequencer::error::SequencerError;
use crate::trail::checkpoint::{self, Checkpoint};
use crate::trail::error::TrailError;
use crate::trail::note::{Kind, SignerKey, VerifierKey};

pub struct Keys {
    pub signer: SignerKey,
    /// The present one first.
    verifiers: Vec<VerifierKey>,
}

impl Keys {
    pub fn new(signer: SignerKey, former: Vec<VerifierKey>) -> Self {
        let verifiers = std::iter::once(signer.verifier()).chain(former).collect();
        Self { signer, verifiers }
    }

    /// # Errors
    /// [`TrailError`] of the present key, if none opens it.
    pub fn open(&self, note: &str) -> Result<Checkpoint, TrailError> {
        checkpoint::open_by_any(note, &self.verifiers)
    }
}

/// # Errors
/// [`SequencerError::Key`], [`SequencerError::FormerKey`].
pub fn keys(config: &SequencerConfig) -> Result<Keys, SequencerError> {
    let missing = || TrailError::malformed("signer key", "there is none; `kage audit keygen` makes one");
    let key = config.key.as_ref().ok_or_else(missing).map_err(SequencerError::Key)?;
    let signer = SignerKey::parse(key).map_err(SequencerError::Key)?;
    if signer.verifier().kind() != Kind::Log {
        return Err(SequencerError::Key(TrailError::malformed("log's key", "it is a witness's")));
    }
    let former = config.former_keys.iter().map(|key| {
        let key = VerifierKey::parse(key)?;
        let same = key.name() == signer.verifier().name();
        let other = || TrailError::malformed("former key of this log", "it has another name");
        same.then_some(key).ok_or_else(other)
    });
    let former = former.collect::<Result<_, _>>().map_err(SequencerError::FormerKey)?;
    Ok(Keys::new(signer, former))
}
