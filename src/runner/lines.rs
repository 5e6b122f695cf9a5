//! Cuts a stream into lines, whatever pieces it comes in.

/// Lines over this many bytes are not given out (their end is still found).
pub(super) const MAX_LINE: usize = 1 << 20;

#[derive(Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
    overlong: bool,
    /// Lines that were not given out.
    left_out: u64,
}

impl Lines {
    /// Goes on after the end of what was stored before.
    pub fn resume(partial: Vec<u8>) -> Self {
        let overlong = partial.len() > MAX_LINE;
        Self { partial: if overlong { Vec::new() } else { partial }, overlong, left_out: 0 }
    }

    /// Gives each line that is complete now, without its newline.
    pub fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.keep(&bytes[..end]);
            if !self.overlong {
                line(&self.partial);
            }
            self.left_out += u64::from(self.overlong);
            self.partial.clear();
            self.overlong = false;
            bytes = &bytes[end + 1..];
        }
        self.keep(bytes);
    }

    /// What follows the last newline, when nothing more comes.
    pub fn last(&mut self) -> Option<Vec<u8>> {
        let partial = std::mem::take(&mut self.partial);
        (!self.overlong && !partial.is_empty()).then_some(partial)
    }

    /// How many lines were too long to be given out, the unfinished one included.
    pub fn left_out(&self) -> u64 {
        self.left_out + u64::from(self.overlong)
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.overlong || self.partial.len() + bytes.len() > MAX_LINE {
            self.overlong = true;
            self.partial = Vec::new();
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.push(piece, |line| out.push(line.to_vec()));
        }
        out
    }

    #[test]
    fn pieces_do_not_matter() {
        let text = b"one\n\ntwo\nthree";
        for cut in 0..text.len() {
            assert_eq!(lines_of(&[&text[..cut], &text[cut..]]), [&b"one"[..], b"", b"two"]);
        }
    }

    #[test]
    fn the_last_line_may_have_no_newline() {
        let mut lines = Lines::default();
        lines.push(b"one\ntwo", |_| {});
        assert_eq!((lines.last(), lines.last()), (Some(b"two".to_vec()), None));
        lines.push(&vec![b'x'; MAX_LINE + 1], |_| {});
        assert_eq!(lines.last(), None);
    }

    #[test]
    fn an_overlong_line_is_left_out_and_the_next_is_not() {
        let long = vec![b'x'; MAX_LINE + 1];
        assert_eq!(lines_of(&[&long, b"y\nnext\n"]), [b"next"]);
        let mut lines = Lines::default();
        for piece in [&long, b"\nnext\n".as_slice(), &long] {
            lines.push(piece, |_| {});
        }
        assert_eq!(lines.left_out(), 2, "and it is said how many");
    }
}
