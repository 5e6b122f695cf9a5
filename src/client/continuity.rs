//! A second proof that nothing is missing: every log block says where in its stream it stands.

use std::collections::HashMap;

/// Where each stream of each run should go on.
#[derive(Debug, Default)]
pub struct Continuity {
    next: HashMap<(String, String), (u32, u64)>,
}

/// Bytes that a stream should have had before this block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    pub run: String,
    pub stream: String,
    pub attempt: u32,
    /// Bytes.
    pub missing: u64,
}

impl Continuity {
    /// Notes a block of `length` bytes at `offset`. A stream starts anew with each attempt.
    pub fn note(&mut self, run: &str, stream: &str, attempt: u32, offset: u64, length: u64) -> Option<Gap> {
        let place = self.next.entry((run.to_owned(), stream.to_owned())).or_insert((attempt, 0));
        let expected = if place.0 == attempt { place.1 } else { 0 };
        *place = (attempt, expected.max(offset.saturating_add(length)));
        (offset > expected).then(|| Gap {
            run: run.to_owned(),
            stream: stream.to_owned(),
            attempt,
            missing: offset - expected,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_a_hole_in_one_stream_and_starts_anew_with_an_attempt() {
        let mut continuity = Continuity::default();
        assert_eq!(continuity.note("a", "stdout", 1, 0, 10), None);
        assert_eq!(continuity.note("a", "stderr", 1, 0, 3), None);
        assert_eq!(continuity.note("b", "stdout", 1, 0, 7), None);
        assert_eq!(continuity.note("a", "stdout", 1, 10, 5), None);
        assert_eq!(continuity.note("a", "stdout", 1, 20, 5).map(|gap| gap.missing), Some(5));
        assert_eq!(continuity.note("a", "stdout", 1, 25, 1), None);
        assert_eq!(continuity.note("a", "stdout", 2, 0, 4), None);
        assert_eq!(
            continuity.note("a", "stdout", 3, 4, 4).map(|gap| (gap.attempt, gap.missing)),
            Some((3, 4))
        );
    }
}
