//! API keys: `kage_<id>_<secret><checksum>`.
//!
//! The id (10 characters of base 62) is public; the secret (32, over 190 bits) is shown once. The last
//! six characters are the CRC-32 of all before them in base 62, so that typing errors and look-alikes
//! are told apart without a database, and secret scanners find real keys only.

use rand::RngExt;
use rand::distr::Alphanumeric;
use secrecy::SecretString;
use sha2::{Digest, Sha256};

const ID: usize = 10;
const SECRET: usize = 32;
const CHECKSUM: usize = 6;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A key's public id and the SHA-256 of its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    pub id: String,
    pub secret_sha256: [u8; 32],
}

/// Makes a key from the system's randomness: what to store, and what to show once.
pub fn generate() -> (ApiKey, SecretString) {
    let id = random(ID);
    let (secret_sha256, shown) = renew(&id);
    (ApiKey { id, secret_sha256 }, shown)
}

/// Another secret for a key: its hash to store, and the whole key to show once.
pub fn renew(id: &str) -> ([u8; 32], SecretString) {
    let secret = random(SECRET);
    let text = format!("kage_{id}_{secret}");
    let shown = format!("{text}{}", checksum(&text));
    (Sha256::digest(secret.as_bytes()).into(), SecretString::from(shown))
}

fn random(length: usize) -> String {
    rand::rng().sample_iter(Alphanumeric).take(length).map(char::from).collect()
}

/// Takes a key apart. `None` if it is no key of ours: wrong form or checksum.
pub fn parse(text: &str) -> Option<ApiKey> {
    if !text.is_ascii() {
        return None;
    }
    let (body, sum) = text.split_at_checked(text.len().checked_sub(CHECKSUM)?)?;
    let (id, secret) = body.strip_prefix("kage_")?.split_once('_')?;
    let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (id.len() == ID && secret.len() == SECRET && plain(id) && plain(secret) && checksum(body) == sum)
        .then(|| ApiKey { id: id.to_owned(), secret_sha256: Sha256::digest(secret.as_bytes()).into() })
}

fn checksum(text: &str) -> String {
    let mut value = crc32fast::hash(text.as_bytes()) as usize;
    let mut digits = [b'0'; CHECKSUM];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[value % 62];
        value /= 62;
    }
    digits.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn a_generated_key_parses_to_itself_and_a_changed_one_does_not() {
        let (key, shown) = generate();
        let shown = shown.expose_secret();
        assert_eq!(parse(shown), Some(key));
        for position in 0..shown.len() {
            let mut changed = shown.as_bytes().to_vec();
            changed[position] = if changed[position] == b'x' { b'y' } else { b'x' };
            let changed = String::from_utf8(changed).expect("ASCII");
            assert_eq!(parse(&changed), None, "a change at {position} went unnoticed");
        }
        for bad in
            ["", "kage_", "kage__", "kage_a_b", &shown[..shown.len() - 1], &format!("{shown}0"), "kägé"]
        {
            assert_eq!(parse(bad), None);
        }
    }
}
