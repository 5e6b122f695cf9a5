//! What is said in a call, for the audit trail: only where the operator wants it, no more of it than he wants, and
//! without what looks like a secret.

use std::sync::Arc;

use crate::db::call_content::{CallContent, Said};
use crate::gateway::spelled;
use crate::redact::patterns::Patterns;
use crate::redact::stream::Stream;

/// One byte of so many may be none of UTF-8: what has more is no text.
const TEXT: usize = 10;

/// Why an answer is not there.
pub(super) const UNREADABLE: &str = "its body is compressed, or neither JSON nor a stream of it";
pub(super) const REDIRECT: &str = "the body of a redirect is not read";
const NO_TEXT: &str = "it is no text";

/// What is kept of one call until it is settled.
#[derive(Default)]
pub(super) struct Content {
    /// Bytes of the request, and as many of the answer. 0: nothing is kept.
    limit: usize,
    request: Option<Part>,
    answer: Option<Part>,
    left_out: Option<&'static str>,
}

/// The beginning of a body, as it is.
#[derive(Default)]
struct Part {
    bytes: Vec<u8>,
    /// More came than is kept.
    is_cut: bool,
    /// It came to its end.
    has_ended: bool,
}

impl Content {
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    /// The request, as it goes to the provider.
    pub fn note_request(&mut self, body: &[u8]) {
        if self.limit > 0 {
            let part = self.request.insert(Part::default());
            part.add(body, self.limit);
            part.has_ended = true;
        }
    }

    /// A piece of the answer, as it came.
    pub fn note_answer(&mut self, piece: &[u8]) {
        if self.limit > 0 {
            self.answer.get_or_insert_default().add(piece, self.limit);
        }
    }

    /// The answer has come to its end.
    pub fn note_end(&mut self) {
        if self.limit > 0 {
            self.answer.get_or_insert_default().has_ended = true;
        }
    }

    /// The answer cannot be read, or is not.
    pub fn leave_out(&mut self, why: &'static str) {
        self.left_out = Some(why);
    }

    /// What may be stored; `None` where nothing was sent, or nothing is wanted. Nothing is kept after it.
    pub fn take(&mut self, patterns: impl FnOnce() -> Arc<Patterns>) -> Option<CallContent> {
        let request = self.request.take()?;
        let patterns = patterns();
        let request = request.told(&patterns, self.limit);
        let answer = self.answer.take().map(|part| part.told_in_events(&patterns, self.limit));
        let unread = match &answer {
            Some(None) => Some(NO_TEXT),
            _ => self.left_out,
        };
        Some(CallContent { request, answer: answer.flatten(), answer_left_out: unread })
    }
}

impl Part {
    fn add(&mut self, piece: &[u8], limit: usize) {
        let room = limit.saturating_sub(self.bytes.len());
        self.is_cut |= piece.len() > room;
        self.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
    }

    fn is_whole(&self) -> bool {
        self.has_ended && !self.is_cut
    }

    /// `None`: it is no text.
    fn told(&self, patterns: &Patterns, limit: usize) -> Option<Said> {
        Some(self.bounded(self.text(patterns)?, limit))
    }

    /// As [`Part::told`], of what may be a stream of events.
    fn told_in_events(&self, patterns: &Patterns, limit: usize) -> Option<Said> {
        let text = spelled::redact(patterns, &self.text(patterns)?, self.is_whole());
        Some(self.bounded(text, limit))
    }

    /// Without secrets that stand there as they are.
    fn text(&self, patterns: &Patterns) -> Option<String> {
        let is_whole = self.is_whole();
        let mut stream = Stream::default();
        let mut bytes = stream.push(patterns, &self.bytes).into_owned();
        // What waits where it is cut may be the beginning of a secret.
        if is_whole {
            bytes.extend_from_slice(&stream.last(patterns));
        }
        legible(&bytes, is_whole)
    }

    fn bounded(&self, mut text: String, limit: usize) -> Said {
        // What stands for a byte that is no text is longer.
        let is_truncated = !self.is_whole() || text.len() > limit;
        text.truncate(text.floor_char_boundary(limit));
        Said { text, is_truncated }
    }
}

/// As text that Postgres takes: it has no U+0000, so that is shown. `None` where too much of it is no text.
fn legible(bytes: &[u8], is_whole: bool) -> Option<String> {
    let (mut text, mut bad) = (String::with_capacity(bytes.len()), 0);
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(chunk.valid());
        // A character that the end cuts off is left out.
        let is_cut_off = !is_whole && chunks.peek().is_none();
        if !chunk.invalid().is_empty() && !is_cut_off {
            bad += chunk.invalid().len();
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    let is_text = bad * TEXT <= bytes.len();
    is_text.then(|| if text.contains('\0') { text.replace('\0', "\u{2400}") } else { text })
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use secrecy::SecretString;

    use super::*;

    const SECRET: &str = "planted-credential-9f2c41d7e8";

    static PATTERNS: LazyLock<Arc<Patterns>> =
        LazyLock::new(|| Arc::new(Patterns::new(&[SecretString::from(SECRET)])));

    /// What is stored of an answer that comes in these pieces.
    fn said(limit: usize, pieces: &[&[u8]], ends: bool) -> CallContent {
        let mut content = Content::new(limit);
        content.note_request(b"{}");
        for piece in pieces {
            content.note_answer(piece);
        }
        if ends {
            content.note_end();
        }
        content.take(|| Arc::clone(&PATTERNS)).unwrap()
    }

    fn text(limit: usize, pieces: &[&[u8]], ends: bool) -> (String, bool) {
        let said = said(limit, pieces, ends).answer.unwrap();
        (said.text, said.is_truncated)
    }

    #[test]
    fn nothing_is_kept_where_nothing_is_wanted() {
        let mut content = Content::new(0);
        content.note_request(b"a");
        content.note_answer(b"b");
        content.note_end();
        assert!(content.request.is_none() && content.answer.is_none());
        assert!(content.take(|| Arc::clone(&PATTERNS)).is_none());
    }

    #[test]
    fn no_beginning_of_a_secret_is_left_wherever_it_is_split_or_cut() {
        let key = "sk-ant-api03-abcdefghijklmnopqrstuvwxyz";
        for secret in [SECRET, key] {
            let whole = format!("before {secret} after");
            let bytes = whole.as_bytes();
            let starred = format!("before {} after", "*".repeat(secret.len()));
            for at in 1..whole.len() {
                let (first, second) = bytes.split_at(at);
                assert_eq!(text(1000, &[first, second], true), (starred.clone(), false));
                // Cut by the bound, and by one who hangs up.
                for (cut, truncated) in [text(at, &[first, second], true), text(1000, &[first], false)] {
                    assert!(starred.starts_with(&cut) && truncated, "{at}: {cut}");
                }
            }
        }
    }

    #[test]
    fn the_bound_holds_for_what_is_stored() {
        assert_eq!(text(5, &[b"12345"], true), ("12345".to_owned(), false));
        assert_eq!(text(5, &[b"123", b"456"], true), ("12345".to_owned(), true));
        let mut content = Content::new(5);
        content.note_request(b"1234567");
        assert_eq!(content.request.as_ref().unwrap().bytes, b"12345", "no more is in memory");
        let request = content.take(|| Arc::clone(&PATTERNS)).unwrap().request.unwrap();
        assert_eq!((request.text.as_str(), request.is_truncated), ("12345", true));
        // A character that is cut; bytes that are none, and U+0000, take more room as text.
        assert_eq!(text(5, &["abcdé".as_bytes()], true), ("abcd".to_owned(), true));
        assert_eq!(
            text(20, &[b"abcdefghijkl\xff\0"], true),
            ("abcdefghijkl\u{fffd}\u{2400}".to_owned(), false)
        );
        assert_eq!(text(14, &[b"abcdefghijkl\0\0"], true), ("abcdefghijkl".to_owned(), true));
    }

    #[test]
    fn what_is_no_text_is_said_to_be_none() {
        let said = said(1000, &[b"\x1f\x8b\x08\0\xff\xfe\xc0\x91"], true);
        assert_eq!((said.answer, said.answer_left_out), (None, Some(NO_TEXT)));
    }
}
