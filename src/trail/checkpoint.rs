//! C2SP tlog-checkpoint: what a log says of itself, to be signed. Origin, size, root.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::trail::error::TrailError;
use crate::trail::note::{Kind, Note, SignatureLine, SignerKey, VerifierKey};
use crate::trail::tree::{Hash, MAX_SIZE};

/// `size` entries, whose root is `root`. The origin is the name of the key that signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub origin: String,
    pub size: u64,
    pub root: Hash,
}

impl Checkpoint {
    /// # Errors
    /// [`TrailError::Malformed`] for any other form, extensions too: this log writes none.
    pub fn parse(text: &str) -> Result<Self, TrailError> {
        let malformed = |problem: &str| TrailError::malformed("checkpoint", problem);
        let lines: Vec<&str> = text.split('\n').collect();
        let &[origin, size, root, ""] = lines.as_slice() else {
            return Err(malformed("it has three lines: origin, size, root"));
        };
        let root = BASE64.decode(root).map_err(|_| malformed("its root is not base64"))?;
        let root: Hash = root.try_into().map_err(|_| malformed("its root has 32 bytes"))?;
        let size = size.parse().map_err(|_| malformed("its size is no number"))?;
        let this = Self { origin: origin.to_owned(), size, root };
        // Made again, so that there is one form: no sign, no leading zero.
        let one = this.to_string() == text && !origin.is_empty() && size <= MAX_SIZE;
        if one { Ok(this) } else { Err(malformed("another form")) }
    }

    pub fn sign(&self, key: &SignerKey) -> Note {
        let text = self.to_string();
        Note { signatures: vec![key.sign(&text, 0)], text }
    }

    /// The checkpoint of a note that the log's key signed.
    ///
    /// # Errors
    /// [`TrailError`]: the note, its signature, its origin or its form is wrong.
    pub fn open(note: &Note, log: &VerifierKey) -> Result<Self, TrailError> {
        note.verify(log)?;
        let this = Self::parse(&note.text)?;
        if this.origin == log.name() {
            Ok(this)
        } else {
            Err(TrailError::Origin { expected: log.name().to_owned(), found: this.origin })
        }
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}\n{}\n{}", self.origin, self.size, BASE64.encode(self.root))
    }
}

/// As [`Checkpoint::open`], from the note's text.
///
/// # Errors
/// As [`Checkpoint::open`].
pub fn open(note: &str, log: &VerifierKey) -> Result<Checkpoint, TrailError> {
    Checkpoint::open(&Note::parse(note)?, log)
}

/// As [`open`], by the log's present key or one of those before it.
///
/// # Errors
/// As [`Checkpoint::open`], of the first key.
pub fn open_by_any(note: &str, keys: &[VerifierKey]) -> Result<Checkpoint, TrailError> {
    let mut first = None;
    for key in keys {
        match open(note, key) {
            Ok(checkpoint) => return Ok(checkpoint),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| TrailError::Unsigned("anybody who is known".to_owned())))
}

/// A witness that signed, by its name, and when, in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witnessed {
    pub witness: String,
    pub time: u64,
    pub line: SignatureLine,
}

/// The cosignatures under a note that known witnesses made.
///
/// # Errors
/// [`TrailError::Signature`] names a witness whose signature does not hold.
pub fn witnessed(note: &Note, witnesses: &[VerifierKey]) -> Result<Vec<Witnessed>, TrailError> {
    let mut found = Vec::new();
    for line in &note.signatures {
        let alone = Note { text: note.text.clone(), signatures: vec![line.clone()] };
        for witness in witnesses.iter().filter(|witness| witness.kind() == Kind::Witness) {
            match alone.verify(witness) {
                Ok(Some(time)) => {
                    found.push(Witnessed { witness: witness.name().to_owned(), time, line: line.clone() });
                }
                Ok(None) | Err(TrailError::Unsigned(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(found)
}
