//! Bytes to lines, with a bound on a line.

/// A longer line is handed on in pieces.
pub const MAX_LINE: usize = 64 * 1024;

/// Cuts one stream into lines; what has no end yet waits.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Hands each complete line to `each`, without its end (`\n` or `\r\n`).
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        let mut pieces = bytes.split(|byte| *byte == b'\n');
        // `split` gives at least one piece; the last one has no line end.
        let last = pieces.next_back().unwrap_or_default();
        for piece in pieces {
            if self.partial.is_empty() {
                bounded(without_cr(piece), &mut each);
            } else {
                self.partial.extend_from_slice(piece);
                bounded(without_cr(&self.partial), &mut each);
                self.partial.clear();
            }
        }
        self.partial.extend_from_slice(last);
        while self.partial.len() > MAX_LINE {
            let cut = char_boundary(&self.partial, MAX_LINE);
            each(&self.partial[..cut]);
            self.partial.drain(..cut);
        }
    }

    /// Hands over what is left when the stream has ended.
    pub fn finish(&mut self, each: impl FnOnce(&[u8])) {
        if !self.partial.is_empty() {
            each(&self.partial);
            self.partial.clear();
        }
    }

    /// The line that has no end yet.
    pub fn partial(&self) -> &[u8] {
        &self.partial
    }
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn bounded(mut line: &[u8], each: &mut impl FnMut(&[u8])) {
    while line.len() > MAX_LINE {
        let (head, rest) = line.split_at(char_boundary(line, MAX_LINE));
        each(head);
        line = rest;
    }
    each(line);
}

/// The last place at or before `at` that is not inside a UTF-8 character.
fn char_boundary(bytes: &[u8], at: usize) -> usize {
    let continues = |byte: u8| byte & 0b1100_0000 == 0b1000_0000;
    (at.saturating_sub(3)..=at).rev().find(|at| !continues(bytes[*at])).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        let mut lines = Lines::default();
        for piece in pieces {
            lines.push(piece, |line| out.push(line.to_vec()));
        }
        lines.finish(|line| out.push(line.to_vec()));
        out
    }

    #[test]
    fn cuts_at_line_ends_wherever_the_pieces_end() {
        let text = b"one\ntwo\r\n\nfo\rur\nfive";
        let expected: Vec<Vec<u8>> =
            [&b"one"[..], b"two", b"", b"fo\rur", b"five"].iter().map(|line| line.to_vec()).collect();
        for cut in 0..=text.len() {
            assert_eq!(lines(&[&text[..cut], &text[cut..]]), expected, "cut at {cut}");
        }
        assert_eq!(lines(&[b"a\n"]), [b"a".to_vec()]);
        assert!(lines(&[b""]).is_empty());
    }

    #[test]
    fn a_line_without_end_comes_in_whole_characters() {
        let text = "ä".repeat(100_000);
        for pieces in
            [vec![text.as_bytes()], text.as_bytes().chunks(999).collect(), vec![text.as_bytes(), b"\n"]]
        {
            let lines = lines(&pieces);
            assert!(lines.len() > 2 && lines.iter().all(|line| line.len() <= MAX_LINE));
            assert!(lines.iter().all(|line| std::str::from_utf8(line).is_ok()));
            assert_eq!(lines.concat(), text.as_bytes());
        }
    }
}
