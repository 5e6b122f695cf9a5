//! What a browser holds of a session, or of a sign-in that has begun: 256 random bits. All else follows from them, so
//! that whoever reads the database can make neither of them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngExt;
use rand::distr::Alphanumeric;
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

const BYTES: usize = 32;
/// Of an id without its prefix.
const ID: usize = 10;

/// What is made of the bits. None tells another, nor the bits.
#[derive(Debug, Clone, Copy)]
pub enum Use {
    /// By this hash a session is found.
    Session,
    /// Shows that a write comes from a page of ours.
    Csrf,
    /// By this hash a sign-in that has begun is found.
    SignIn,
    /// OAuth 2.0 `state`.
    State,
    /// OpenID Connect `nonce`.
    Nonce,
    /// PKCE `code_verifier`.
    Verifier,
}

impl Use {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::Session => b"kage session",
            Self::Csrf => b"kage csrf",
            Self::SignIn => b"kage sign-in",
            Self::State => b"kage state",
            Self::Nonce => b"kage nonce",
            Self::Verifier => b"kage verifier",
        }
    }
}

pub struct CookieSecret(Zeroizing<[u8; BYTES]>);

impl CookieSecret {
    pub fn generate() -> Self {
        Self(Zeroizing::new(rand::rng().random()))
    }

    /// `None` if it is none of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
        Some(Self(Zeroizing::new(bytes.as_slice().try_into().ok()?)))
    }

    /// As it stands in the cookie.
    pub fn shown(&self) -> SecretString {
        URL_SAFE_NO_PAD.encode(*self.0).into()
    }

    pub fn derive(&self, what: Use) -> [u8; BYTES] {
        let mut hash = Sha256::new();
        hash.update(what.label());
        hash.update([0]);
        hash.update(*self.0);
        hash.finalize().into()
    }

    /// As [`CookieSecret::derive`], in 43 characters of base64url.
    pub fn derive_text(&self, what: Use) -> SecretString {
        URL_SAFE_NO_PAD.encode(self.derive(what)).into()
    }
}

/// A session's public id. No key has such a one.
pub fn session_id() -> String {
    format!("s_{}", random())
}

/// The id under which a person's use is booked. No key has such a one.
pub fn person_id() -> String {
    format!("p_{}", random())
}

fn random() -> String {
    rand::rng().sample_iter(Alphanumeric).take(ID).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;
    use crate::domain::api_key;

    #[test]
    fn what_follows_from_the_bits_tells_nothing_of_them() {
        let secret = CookieSecret::generate();
        let shown = secret.shown().expose_secret().to_owned();
        let uses = [Use::Session, Use::Csrf, Use::SignIn, Use::State, Use::Nonce, Use::Verifier];
        let mut seen: Vec<String> =
            uses.iter().map(|what| secret.derive_text(*what).expose_secret().to_owned()).collect();
        assert!(seen.iter().all(|text| text.len() == 43), "{seen:?}");
        seen.push(shown.clone());
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), uses.len() + 1);
        let again = CookieSecret::parse(&shown).expect("ours");
        assert_eq!(again.derive(Use::Session), secret.derive(Use::Session));
        for bad in ["", "a", &shown[1..], &format!("{shown}A"), &format!("{shown}="), "ä"] {
            assert!(CookieSecret::parse(bad).is_none(), "{bad:?}");
        }
        assert!(api_key::parse(&session_id()).is_none() && person_id().starts_with("p_"));
    }
}
