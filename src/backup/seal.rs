//! Compression, encryption to `age` recipients, and the names of pieces.

use std::io::{Read as _, Write as _};

use age::x25519;
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretBox};
use sha2::{Digest as _, Sha256};

use crate::backup::error::BackupError;
use crate::backup::manifest::Piece;

/// The first byte of what is sealed.
const PLAIN: u8 = 0;
const ZLIB: u8 = 1;

/// Public keys, `age1…`.
#[derive(Debug, Clone, Default)]
pub struct Recipients {
    keys: Vec<x25519::Recipient>,
    /// Sorted, each once.
    names: Vec<String>,
}

impl Recipients {
    /// # Errors
    /// [`BackupError::Refused`] for one that is no X25519 recipient.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, BackupError> {
        let mut keys: Vec<(String, x25519::Recipient)> = Vec::new();
        for text in texts {
            let key: x25519::Recipient = text.parse().map_err(|problem| {
                // A private key that was put in the wrong place is not repeated.
                let said =
                    if text.starts_with("age1") { format!("{text:?}") } else { "one of them".to_owned() };
                BackupError::Refused(format!("recipients are public keys, age1…; {said} is none: {problem}"))
            })?;
            keys.push((key.to_string(), key));
        }
        keys.sort_by(|(one, _), (other, _)| one.cmp(other));
        keys.dedup_by(|(one, _), (other, _)| one == other);
        let (names, keys) = keys.into_iter().unzip();
        Ok(Self { keys, names })
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }
}

/// Seals pieces of one installation.
pub struct Sealer {
    recipients: Recipients,
    key: SecretBox<[u8; 32]>,
}

impl Sealer {
    pub fn new(recipients: Recipients, key: SecretBox<[u8; 32]>) -> Self {
        Self { recipients, key }
    }

    /// An HMAC of whom it is for and what it is: the same piece has the same name in the next backup, and a name gives nothing
    /// away to who lacks the key.
    pub fn name(&self, piece: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.expose_secret()).expect("a key of any length");
        for recipient in self.recipients.names() {
            mac.update(recipient.as_bytes());
            mac.update(b"\n");
        }
        mac.update(b"\n");
        mac.update(piece);
        hex::encode(mac.finalize().into_bytes())
    }

    /// # Errors
    /// [`BackupError::Encrypt`].
    pub fn seal(&self, piece: &[u8]) -> Result<Vec<u8>, BackupError> {
        let failed = |error: std::io::Error| BackupError::Encrypt(error.to_string());
        let mut encoder = ZlibEncoder::new(vec![ZLIB], Compression::fast());
        encoder.write_all(piece).map_err(failed)?;
        let mut packed = encoder.finish().map_err(failed)?;
        // A pack of git is compressed already.
        if packed.len() > piece.len() {
            packed = [&[PLAIN], piece].concat();
        }
        if self.recipients.keys.is_empty() {
            return Ok(packed);
        }
        let keys = self.recipients.keys.iter().map(|key| key as &dyn age::Recipient);
        let encryptor =
            age::Encryptor::with_recipients(keys).map_err(|error| BackupError::Encrypt(error.to_string()))?;
        let mut sealed = Vec::with_capacity(packed.len() + 1024);
        let mut writer = encryptor.wrap_output(&mut sealed).map_err(failed)?;
        writer.write_all(&packed).map_err(failed)?;
        writer.finish().map_err(failed)?;
        Ok(sealed)
    }
}

/// Private keys, `AGE-SECRET-KEY-1…`; none: for a backup that is not encrypted.
#[derive(Default)]
pub struct Identities(Vec<x25519::Identity>);

impl Identities {
    /// What `age-keygen` writes: a key a line, comments begin with `#`.
    ///
    /// # Errors
    /// The line's number; never its text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let keys: Result<Vec<_>, _> = lines
            .map(|(number, line)| line.parse().map_err(|_| format!("line {number} is no age identity")))
            .collect();
        match keys {
            Ok(keys) if keys.is_empty() => Err("there is no age identity in it".to_owned()),
            Ok(keys) => Ok(Self(keys)),
            Err(problem) => Err(problem),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// The piece in `stored`, which is all that it says: length and hash are checked.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(&self, stored: &[u8], encrypted: bool, piece: &Piece) -> Result<Vec<u8>, String> {
        let opened;
        let packed = if encrypted {
            opened = self.decrypt(stored, piece.bytes)?;
            &opened
        } else {
            stored
        };
        // One byte more than there may be: it is never unpacked further.
        let most = piece.bytes.saturating_add(1);
        let mut bytes = Vec::new();
        let read = match packed.split_first() {
            Some((&PLAIN, rest)) => rest.take(most).read_to_end(&mut bytes),
            Some((&ZLIB, rest)) => ZlibDecoder::new(rest).take(most).read_to_end(&mut bytes),
            _ => return Err("it has no known form".to_owned()),
        };
        read.map_err(|error| format!("it cannot be unpacked: {error}"))?;
        if bytes.len() as u64 != piece.bytes || hex::encode(Sha256::digest(&bytes)) != piece.sha256 {
            return Err("its content is not what was backed up".to_owned());
        }
        Ok(bytes)
    }

    fn decrypt(&self, stored: &[u8], bytes: u64) -> Result<Vec<u8>, String> {
        let failed = |error: age::DecryptError| match error {
            age::DecryptError::NoMatchingKeys => "none of the identities opens it".to_owned(),
            error => format!("it cannot be decrypted: {error}"),
        };
        let decryptor = age::Decryptor::new(stored).map_err(failed)?;
        let keys = self.0.iter().map(|key| key as &dyn age::Identity);
        let reader = decryptor.decrypt(keys).map_err(failed)?;
        let mut packed = Vec::new();
        // Compressed is never longer than plain.
        let read = reader.take(bytes.saturating_add(2)).read_to_end(&mut packed);
        read.map_err(|error| format!("it cannot be decrypted: {error}"))?;
        Ok(packed)
    }
}

/// What is written down of a piece.
pub fn piece(object: String, bytes: &[u8]) -> Piece {
    Piece { object, bytes: bytes.len() as u64, sha256: hex::encode(Sha256::digest(bytes)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(recipients: &[&x25519::Identity], key: u8) -> Sealer {
        let names: Vec<String> = recipients.iter().map(|identity| identity.to_public().to_string()).collect();
        let recipients = Recipients::parse(names.iter().map(String::as_str)).expect("recipients");
        Sealer::new(recipients, SecretBox::new(Box::new([key; 32])))
    }

    #[test]
    fn what_is_sealed_opens_for_its_recipients_alone() {
        let (mine, other) = (x25519::Identity::generate(), x25519::Identity::generate());
        let text = b"a row\n".repeat(1000);
        let piece = piece("x".to_owned(), &text);
        let plain = sealer(&[], 1).seal(&text).expect("packed");
        assert!(plain.len() < 200, "{}", plain.len());
        assert_eq!(Identities::default().open(&plain, false, &piece).as_deref(), Ok(text.as_slice()));
        let sealed = sealer(&[&mine], 1).seal(&text).expect("sealed");
        assert!(!sealed.windows(5).any(|window| window == b"a row"));
        assert_eq!(Identities(vec![other, mine]).open(&sealed, true, &piece).as_deref(), Ok(text.as_slice()));
        let other = x25519::Identity::generate();
        let refused = Identities(vec![other]).open(&sealed, true, &piece).expect_err("another's");
        assert!(refused.contains("none of the identities"), "{refused}");
    }

    #[test]
    fn a_bit_more_or_less_is_refused() {
        let mine = x25519::Identity::generate();
        let text = b"a row\n".repeat(1000);
        let piece = piece("x".to_owned(), &text);
        let sealed = sealer(&[&mine], 1).seal(&text).expect("sealed");
        let mine = Identities(vec![mine]);
        for place in [0, 30, sealed.len() / 2, sealed.len() - 1] {
            let mut other = sealed.clone();
            other[place] ^= 1;
            mine.open(&other, true, &piece).expect_err("a flipped bit");
        }
        mine.open(&sealed[..sealed.len() - 1], true, &piece).expect_err("cut");
        // A bomb is not unpacked further than its piece.
        let bomb = sealer(&[], 1).seal(&vec![0; 32 << 20]).expect("packed");
        Identities::default().open(&bomb, false, &piece).expect_err("too long");
    }

    #[test]
    fn a_name_depends_on_key_recipients_and_content() {
        let mine = x25519::Identity::generate();
        let name = |recipients: &[&x25519::Identity], key, text: &[u8]| sealer(recipients, key).name(text);
        let all = [name(&[], 1, b"a"), name(&[], 2, b"a"), name(&[], 1, b"b"), name(&[&mine], 1, b"a")];
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
        assert_eq!(all[0], name(&[], 1, b"a"));
    }

    #[test]
    fn a_private_key_in_the_wrong_place_is_not_repeated() {
        use secrecy::ExposeSecret as _;
        let secret = x25519::Identity::generate().to_string();
        let refused = Recipients::parse([secret.expose_secret()]).expect_err("no recipient").to_string();
        assert!(!refused.contains(&secret.expose_secret()[20..]), "{refused}");
        let Err(refused) = Identities::parse("# a comment\nAGE-SECRET-KEY-1planted") else { panic!("taken") };
        assert!(refused.contains("line 2") && !refused.contains("planted"), "{refused}");
    }
}
