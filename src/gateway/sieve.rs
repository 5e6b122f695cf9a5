//! Looks for the operator's credential in what a provider answers: a provider that repeats it, in an error say, must
//! not hand it to a sandbox. Every byte is looked at, also where the credential comes in two pieces.

use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;
use secrecy::{ExposeSecret, SecretString};

/// Bytes of the shortest credential that is looked for. Shorter ones are words that servers without keys are given
/// (`EMPTY`, `not-needed`), and a model may well say them; a vendor's key is longer.
const LEAST: usize = 16;

/// The credential was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found;

pub(super) struct Sieve {
    /// None: there is nothing to look for.
    finder: Option<Finder<'static>>,
    /// The end of what came, where it may be the credential's beginning.
    held: Bytes,
}

impl Sieve {
    pub fn new(secret: Option<&SecretString>) -> Self {
        let needle = secret.map(|secret| secret.expose_secret().as_bytes());
        let needle = needle.filter(|needle| needle.len() >= LEAST);
        let finder = needle.map(|needle| Finder::new(needle).into_owned());
        Self { finder, held: Bytes::new() }
    }

    /// What of the answer may go on by now. Nothing is copied, but where a piece ends as the credential begins.
    ///
    /// # Errors
    /// [`Found`]: nothing more may go on.
    pub fn pass(&mut self, chunk: Bytes) -> Result<Bytes, Found> {
        let Some(finder) = &self.finder else { return Ok(chunk) };
        let mut bytes = if self.held.is_empty() {
            chunk
        } else {
            let mut both = BytesMut::with_capacity(self.held.len() + chunk.len());
            both.extend_from_slice(&std::mem::take(&mut self.held));
            both.extend_from_slice(&chunk);
            both.freeze()
        };
        if finder.find(&bytes).is_some() {
            return Err(Found);
        }
        self.held = bytes.split_off(bytes.len() - begun(finder.needle(), &bytes));
        Ok(bytes)
    }

    /// The answer has ended: what was held back is not the credential.
    pub fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.held)
    }
}

/// How many bytes at the text's end are the beginning of `secret`.
fn begun(secret: &[u8], text: &[u8]) -> usize {
    let Some(&first) = secret.first() else { return 0 };
    let tail = &text[text.len().saturating_sub(secret.len() - 1)..];
    memchr::memchr_iter(first, tail)
        .find(|at| secret.starts_with(&tail[*at..]))
        .map_or(0, |at| tail.len() - at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sieve(secret: &str) -> Sieve {
        Sieve::new(Some(&SecretString::from(secret)))
    }

    /// What goes on of pieces, and whether the credential was found.
    fn through(secret: &str, pieces: &[&str]) -> (String, bool) {
        let (mut sieve, mut out) = (sieve(secret), Vec::new());
        for piece in pieces {
            match sieve.pass(Bytes::copy_from_slice(piece.as_bytes())) {
                Ok(bytes) => out.extend_from_slice(&bytes),
                Err(Found) => return (String::from_utf8_lossy(&out).into_owned(), true),
            }
        }
        out.extend_from_slice(&sieve.rest());
        (String::from_utf8_lossy(&out).into_owned(), false)
    }

    #[test]
    fn a_credential_is_found_however_it_is_cut() {
        let text = "data: your key sk-secret-1-abcdef is wrong\n\n";
        for first in 0..text.len() {
            for second in first..text.len() {
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                let (out, found) = through("sk-secret-1-abcdef", &pieces);
                assert!(found && !out.contains("sk-s"), "{first} {second}: {out}");
            }
        }
        let single: Vec<String> = text.chars().map(String::from).collect();
        let single: Vec<&str> = single.iter().map(String::as_str).collect();
        assert_eq!(through("sk-secret-1-abcdef", &single), ("data: your key ".to_owned(), true));
        // A word that a model may say.
        assert_eq!(through("EMPTY", &["it is EMP", "TY"]), ("it is EMPTY".to_owned(), false));
    }

    #[test]
    fn what_only_looks_like_it_goes_on_whole() {
        for pieces in [
            &["data: sk-sk-", "sk-secret-", "2\n\n"][..],
            &["sk-secret-"],
            &["aab", "aaba", "aabaa"],
            &["", "x", ""],
        ] {
            assert_eq!(through("sk-secret-1-abcdef", pieces), (pieces.concat(), false));
            assert_eq!(through("aabaabaabaabaabaac", pieces), (pieces.concat(), false));
        }
        let mut none = Sieve::new(None);
        assert_eq!(none.pass(Bytes::from_static(b"sk-")), Ok(Bytes::from_static(b"sk-")));
    }

    #[test]
    fn a_piece_that_ends_otherwise_is_not_held_back() {
        let mut sieve = sieve("sk-secret-1-abcdef");
        let event = Bytes::from_static(b"data: {\"text\":\"sky\"}\n\n");
        assert_eq!(sieve.pass(event.clone()), Ok(event));
    }
}
