//! What an attempt writes, without what looks like a secret.

use std::borrow::Cow;
use std::sync::Arc;

use kage_shim::protocol::Stream;

use crate::redact::known::Known;
use crate::redact::stream;

pub(super) struct Redactor {
    known: Arc<Known>,
    stdout: stream::Stream,
    stderr: stream::Stream,
    /// Something was found.
    found: bool,
    /// And that is written down.
    told: bool,
}

impl Redactor {
    pub fn new(known: Arc<Known>) -> Self {
        let (stdout, stderr) = Default::default();
        Self { known, stdout, stderr, found: false, told: false }
    }

    /// What may be stored of a stream now: the same bytes in their places, `*` for those of secrets. The rest waits.
    pub fn take<'a>(&mut self, stream: Stream, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let patterns = self.known.patterns();
        let this = self.stream(stream);
        let out = this.push(&patterns, bytes);
        self.found |= self.stream(stream).found() > 0;
        out
    }

    /// What waits still, when nothing follows.
    pub fn last(&mut self, stream: Stream) -> Vec<u8> {
        let patterns = self.known.patterns();
        let out = self.stream(stream).last(&patterns);
        self.found |= self.stream(stream).found() > 0;
        out
    }

    pub fn redact(&mut self, text: &mut String) {
        self.found |= self.known.patterns().redact_text(text) > 0;
    }

    /// Forgets what waits: it comes again.
    pub fn rewind(&mut self) {
        (self.stdout, self.stderr) = Default::default();
    }

    /// Whether something was found for the first time.
    pub fn take_news(&mut self) -> bool {
        self.found && !std::mem::replace(&mut self.told, self.found)
    }

    fn stream(&mut self, stream: Stream) -> &mut stream::Stream {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}
