//! C2SP signed-note: a text and the signatures under it. Ed25519, for logs (`0x01`) and for witnesses (`0x04`).
//!
//! Own code over `ed25519-dalek`: the crate `signed_note` has stood still on an Ed25519 and a SHA-2 of a former generation, and
//! knows no witnesses. What keys and signatures of other programs look like is in the tests.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use secrecy::{ExposeSecret as _, SecretBox, SecretString};
use sha2::{Digest as _, Sha256};

use crate::trail::error::TrailError;

/// Notes are short; more is no note of ours.
const MAX_BYTES: usize = 64 * 1024;
const MAX_SIGNATURES: usize = 100;
const DASH: &str = "\u{2014} ";
const PRIVATE: &str = "PRIVATE+KEY+";

/// What a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The text itself.
    Log,
    /// The text and when it was seen: tlog-cosignature, version 1.
    Witness,
}

impl Kind {
    const fn byte(self) -> u8 {
        match self {
            Self::Log => 0x01,
            Self::Witness => 0x04,
        }
    }

    const fn of(byte: u8) -> Option<Self> {
        match byte {
            0x01 => Some(Self::Log),
            0x04 => Some(Self::Witness),
            _ => None,
        }
    }
}

fn key_id(name: &str, kind: Kind, key: &VerifyingKey) -> [u8; 4] {
    let digest = Sha256::new()
        .chain_update(name)
        .chain_update([b'\n', kind.byte()])
        .chain_update(key.as_bytes())
        .finalize();
    [digest[0], digest[1], digest[2], digest[3]]
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+')
}

/// A public key with its name: `NAME+ID+KEY`.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    kind: Kind,
    key: VerifyingKey,
}

impl VerifierKey {
    /// # Errors
    /// [`TrailError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, TrailError> {
        let malformed = |problem: &str| TrailError::malformed("verifier key", problem);
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(malformed("it is NAME+ID+KEY"));
        };
        let bytes = BASE64.decode(key).map_err(|_| malformed("its key is not base64"))?;
        let Some((kind, bytes)) = bytes.split_first() else { return Err(malformed("its key is empty")) };
        let kind = Kind::of(*kind).ok_or_else(|| malformed("only Ed25519 (0x01, 0x04) is known"))?;
        let bytes: &[u8; 32] = bytes.try_into().map_err(|_| malformed("an Ed25519 key has 32 bytes"))?;
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| malformed("no point on the curve"))?;
        if key.is_weak() {
            return Err(malformed("a weak key signs everything"));
        }
        if !is_name(name) {
            return Err(malformed("its name is empty, too long, or has spaces"));
        }
        let this = Self { name: name.to_owned(), kind, key };
        if hex::encode(this.id()) == id {
            Ok(this)
        } else {
            Err(malformed("its id is not that of its name and key"))
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn id(&self) -> [u8; 4] {
        key_id(&self.name, self.kind, &self.key)
    }

    fn made(&self, line: &SignatureLine) -> bool {
        line.name == self.name && line.bytes.starts_with(&self.id())
    }

    /// When it was signed, in seconds since 1970; for a log's own signature nothing is said.
    fn check(&self, text: &str, line: &SignatureLine) -> Result<Option<u64>, TrailError> {
        let wrong = || TrailError::Signature(self.name.clone());
        let blob = &line.bytes[4..];
        let (time, signature) = match self.kind {
            Kind::Log => (None, blob),
            Kind::Witness => {
                let (time, signature) = blob.split_at_checked(8).ok_or_else(wrong)?;
                (Some(u64::from_be_bytes(time.try_into().map_err(|_| wrong())?)), signature)
            }
        };
        let signature = Signature::from_slice(signature).map_err(|_| wrong())?;
        let message = time.map_or_else(|| text.to_owned(), |time| witnessed(time, text));
        self.key.verify_strict(message.as_bytes(), &signature).map_err(|_| wrong())?;
        Ok(time)
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![self.kind.byte()];
        bytes.extend_from_slice(self.key.as_bytes());
        write!(formatter, "{}+{}+{}", self.name, hex::encode(self.id()), BASE64.encode(bytes))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "VerifierKey({self})")
    }
}

/// What a witness signs.
fn witnessed(time: u64, text: &str) -> String {
    format!("cosignature/v1\ntime {time}\n{text}")
}

/// A private key with its name: `PRIVATE+KEY+NAME+ID+SEED`. It shows itself to nobody.
pub struct SignerKey {
    name: String,
    kind: Kind,
    key: SigningKey,
}

impl SignerKey {
    /// From 32 bytes of chance.
    ///
    /// # Errors
    /// [`TrailError::Malformed`] for a name that no key can have.
    pub fn new(name: &str, kind: Kind, seed: &SecretBox<[u8; 32]>) -> Result<Self, TrailError> {
        if !is_name(name) {
            return Err(TrailError::malformed("key's name", "empty, too long, or with spaces or +"));
        }
        Ok(Self { name: name.to_owned(), kind, key: SigningKey::from_bytes(seed.expose_secret()) })
    }

    /// # Errors
    /// [`TrailError::Malformed`], without a word of what it holds.
    pub fn parse(text: &SecretString) -> Result<Self, TrailError> {
        let malformed = |problem: &str| TrailError::malformed("signer key", problem);
        let text = text.expose_secret().trim();
        let rest = text.strip_prefix(PRIVATE).ok_or_else(|| malformed("it begins with PRIVATE+KEY+"))?;
        let mut parts = rest.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(malformed("it is PRIVATE+KEY+NAME+ID+SEED"));
        };
        let bytes =
            SecretBox::new(Box::new(BASE64.decode(key).map_err(|_| malformed("its seed is not base64"))?));
        let Some((kind, seed)) = bytes.expose_secret().split_first() else {
            return Err(malformed("its seed is empty"));
        };
        let kind = Kind::of(*kind).ok_or_else(|| malformed("only Ed25519 (0x01, 0x04) is known"))?;
        let seed: [u8; 32] = seed.try_into().map_err(|_| malformed("an Ed25519 seed has 32 bytes"))?;
        let this = Self::new(name, kind, &SecretBox::new(Box::new(seed)))?;
        let own = hex::encode(this.verifier().id());
        if own == id { Ok(this) } else { Err(malformed("its id is not that of its name and key")) }
    }

    pub fn verifier(&self) -> VerifierKey {
        VerifierKey { name: self.name.clone(), kind: self.kind, key: self.key.verifying_key() }
    }

    /// The form that [`SignerKey::parse`] takes.
    pub fn to_secret(&self) -> SecretString {
        let mut bytes = vec![self.kind.byte()];
        bytes.extend_from_slice(self.key.as_bytes());
        let id = hex::encode(self.verifier().id());
        SecretString::from(format!("{PRIVATE}{}+{id}+{}", self.name, BASE64.encode(bytes)))
    }

    /// `time` counts for a witness alone, in seconds since 1970.
    pub fn sign(&self, text: &str, time: u64) -> SignatureLine {
        let mut bytes = self.verifier().id().to_vec();
        let message = match self.kind {
            Kind::Log => text.to_owned(),
            Kind::Witness => {
                bytes.extend_from_slice(&time.to_be_bytes());
                witnessed(time, text)
            }
        };
        bytes.extend_from_slice(&self.key.sign(message.as_bytes()).to_bytes());
        SignatureLine { name: self.name.clone(), bytes }
    }
}

impl fmt::Debug for SignerKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SignerKey({})", self.verifier())
    }
}

/// `— NAME BASE64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureLine {
    name: String,
    /// The key's id, then what its kind makes.
    bytes: Vec<u8>,
}

impl SignatureLine {
    /// # Errors
    /// [`TrailError::Malformed`].
    pub fn parse(line: &str) -> Result<Self, TrailError> {
        let malformed = |problem: &str| TrailError::malformed("signature line", problem);
        let rest =
            line.strip_prefix(DASH).ok_or_else(|| malformed("it begins with an em dash and a space"))?;
        let (name, signature) = rest.split_once(' ').ok_or_else(|| malformed("it is — NAME SIGNATURE"))?;
        let bytes = BASE64.decode(signature).map_err(|_| malformed("its signature is not base64"))?;
        if !is_name(name) || bytes.len() < 5 {
            return Err(malformed("its name or signature cannot be one"));
        }
        Ok(Self { name: name.to_owned(), bytes })
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for SignatureLine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{DASH}{} {}", self.name, BASE64.encode(&self.bytes))
    }
}

/// A text that ends with a newline, and its signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub text: String,
    pub signatures: Vec<SignatureLine>,
}

impl Note {
    /// # Errors
    /// [`TrailError::Malformed`].
    pub fn parse(note: &str) -> Result<Self, TrailError> {
        let malformed = |problem: &str| TrailError::malformed("signed note", problem);
        if note.len() > MAX_BYTES || note.contains(|c: char| c < '\u{20}' && c != '\n') {
            return Err(malformed("too long, or with control characters"));
        }
        let split = note.rfind("\n\n").ok_or_else(|| malformed("no empty line before the signatures"))?;
        let (text, lines) = (&note[..=split], &note[split + 2..]);
        let lines = lines.strip_suffix('\n').ok_or_else(|| malformed("no newline at its end"))?;
        let signatures = lines.split('\n').map(SignatureLine::parse).collect::<Result<Vec<_>, _>>()?;
        if signatures.len() > MAX_SIGNATURES {
            return Err(malformed("too many signatures"));
        }
        Ok(Self { text: text.to_owned(), signatures })
    }

    /// Whether `key` signed, and when (witnesses say that). Lines of keys that nobody asks for count for nothing.
    ///
    /// # Errors
    /// [`TrailError::Unsigned`]; [`TrailError::Signature`] if there is one that does not hold.
    pub fn verify(&self, key: &VerifierKey) -> Result<Option<u64>, TrailError> {
        let mut lines = self.signatures.iter().filter(|line| key.made(line)).peekable();
        if lines.peek().is_none() {
            return Err(TrailError::Unsigned(key.name.clone()));
        }
        lines.try_fold(None, |_, line| key.check(&self.text, line))
    }
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", self.text)?;
        self.signatures.iter().try_for_each(|line| writeln!(formatter, "{line}"))
    }
}

#[cfg(test)]
#[path = "note_tests.rs"]
mod tests;
