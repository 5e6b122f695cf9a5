//! A stream that comes in pieces: what could be the beginning of a secret waits for the rest, so that one that is split
//! over two pieces is found too. Every byte comes out, in its place; those of secrets as `*`.

use std::borrow::Cow;

use crate::redact::patterns::{BACK, Patterns};

/// Most bytes that wait, but for the longest key: secrets that overlap without end are then let go in part.
const MOST_HELD: usize = 16 << 10;

/// Holds nothing but what waits: who begins anew after the last byte that was given out, with the same bytes, gets the
/// same.
#[derive(Debug, Default, Clone)]
pub struct Stream {
    /// Waits, as it came.
    held: Vec<u8>,
    /// The last that were given out, as they came.
    before: Vec<u8>,
    /// Secrets so far.
    found: u64,
}

impl Stream {
    /// Bytes that wait.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    pub fn found(&self) -> u64 {
        self.found
    }

    /// What can be given out now.
    pub fn push<'a>(&mut self, patterns: &Patterns, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        self.go_on(patterns, bytes, false)
    }

    /// What waits still, when nothing follows.
    pub fn last(&mut self, patterns: &Patterns) -> Vec<u8> {
        self.go_on(patterns, &[], true).into_owned()
    }

    fn go_on<'a>(&mut self, patterns: &Patterns, new: &'a [u8], last: bool) -> Cow<'a, [u8]> {
        let mut bytes = if self.held.is_empty() {
            Cow::Borrowed(new)
        } else {
            let mut all = std::mem::take(&mut self.held);
            all.extend_from_slice(new);
            Cow::Owned(all)
        };
        let found = patterns.find(&self.before, &bytes, last);
        let cut = found.undecided.unwrap_or(bytes.len());
        // A secret is given out whole: what is stored of it then ends where it ends, whoever goes on from there.
        let crossed = found.secrets.iter().find(|place| place.end > cut).map(|place| place.start);
        let out =
            crossed.filter(|start| bytes.len() - start <= MOST_HELD).map_or(cut, |start| start.min(cut));
        self.held.extend_from_slice(&bytes[out..]);
        self.before.extend_from_slice(&bytes[out.saturating_sub(BACK)..out]);
        self.before.drain(..self.before.len().saturating_sub(BACK));
        for place in found.secrets.iter().filter(|place| place.start < out) {
            self.found += 1;
            bytes.to_mut()[place.start..place.end.min(out)].fill(b'*');
        }
        match &mut bytes {
            Cow::Borrowed(text) => *text = &text[..out],
            Cow::Owned(text) => text.truncate(out),
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use secrecy::SecretString;

    use super::*;
    use crate::domain::api_key;
    use secrecy::ExposeSecret as _;

    fn pieces(patterns: &Patterns, text: &[u8], cuts: &[usize]) -> Vec<u8> {
        let (mut stream, mut out, mut at) = (Stream::default(), Vec::new(), 0);
        for cut in cuts {
            let end = (at + cut).min(text.len());
            out.extend_from_slice(&stream.push(patterns, &text[at..end]));
            at = end;
            assert_eq!(out.len() + stream.held(), at, "what is not out waits");
        }
        out.extend_from_slice(&stream.push(patterns, &text[at..]));
        out.extend_from_slice(&stream.last(patterns));
        out
    }

    #[test]
    fn a_secret_that_is_split_anywhere_is_found() {
        let secret = SecretString::from("correct horse battery");
        let patterns = Patterns::new([&secret]);
        let (_, key) = api_key::generate();
        for secret in [secret.expose_secret(), key.expose_secret(), "sk-ant-api03-abcdefghijklmnopqrstuvwxyz"]
        {
            let text = format!("before {secret} after");
            let expected = format!("before {} after", "*".repeat(secret.len()));
            for cut in 0..text.len() {
                for width in [1, 3, text.len()] {
                    let out = pieces(&patterns, text.as_bytes(), &[cut, width]);
                    assert_eq!(String::from_utf8_lossy(&out), expected, "{cut} {width}");
                }
            }
            let out = pieces(&patterns, text.as_bytes(), &vec![1; text.len()]);
            assert_eq!(String::from_utf8_lossy(&out), expected);
        }
    }

    #[test]
    fn what_can_be_no_beginning_does_not_wait() {
        let patterns = Patterns::new([]);
        let mut stream = Stream::default();
        for text in ["a prompt> ", "tasks", "a line\n", "bytes \u{e9}"] {
            assert_eq!(&*stream.push(&patterns, text.as_bytes()), text.as_bytes());
        }
        assert!(matches!(stream.push(&patterns, b"plain"), Cow::Borrowed(_)), "nothing is copied");
        assert_eq!(&*stream.push(&patterns, b" s"), b" ");
        assert_eq!((stream.held(), stream.last(&patterns)), (1, b"s".to_vec()));
    }

    proptest! {
        /// Whatever the pieces: as the whole, byte for byte in its place; without a secret, what came.
        #[test]
        fn pieces_do_not_matter(
            parts in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..20),
                Just(b"abcabcab".to_vec()), Just(b"cabcabca".to_vec()), Just(b"abcab".to_vec()),
                Just(b"sk-ant-aaaaaaaaaaaaaaaaaaaaaaaa".to_vec()), Just(b"sk-".to_vec()), Just(b"AKIA".to_vec()),
                Just(b"ABCDEFGHIJKLMNOP".to_vec()), Just(b" ".to_vec()), Just(b"\\n".to_vec()),
            ], 0..30),
            cuts in prop::collection::vec(0usize..40, 0..60),
        ) {
            static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| {
                Patterns::new(&[SecretString::from("abcabcab"), SecretString::from("cabcabcaX")])
            });
            let patterns = &*PATTERNS;
            let text = parts.concat();
            let mut whole = text.clone();
            patterns.redact(&mut whole);
            let out = pieces(patterns, &text, &cuts);
            prop_assert_eq!(&out, &whole);
            // Whoever begins anew where it stopped, without knowing what was before, keeps no less out.
            let (mut anew, mut at) = (Vec::new(), 0);
            for cut in &cuts {
                let end = (at + cut).min(text.len());
                let more = Stream::default().push(patterns, &text[anew.len()..end]).into_owned();
                anew.extend(more);
                at = end.max(anew.len());
            }
            let mut stream = Stream::default();
            let rest = stream.push(patterns, &text[anew.len()..]).into_owned();
            anew.extend(rest);
            anew.extend(stream.last(patterns));
            for ((came, went), again) in text.iter().zip(&out).zip(&anew) {
                prop_assert!(again == came || *again == b'*');
                prop_assert!(went == came || *again == b'*');
            }
            for (came, went) in text.iter().zip(&out) {
                prop_assert!(came == went || *went == b'*');
            }
        }
    }
}
