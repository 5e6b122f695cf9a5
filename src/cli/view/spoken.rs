//! A run's output in words: which of its lines are for programs, and what its events add to the others.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::wire::event::Activity;

/// How a line begins that is one of an agent's own events.
const BEGINNING: &[u8] = b"{\"";

/// Lines that are remembered until their event has come: more than one commit of a runner has.
const MOST_SHOWN: usize = 1 << 16;

/// Leaves out the lines of a stream that are JSON objects.
#[derive(Debug, Default)]
pub struct JsonLines {
    /// Bytes of [`BEGINNING`] that this line has had so far; they are not given out yet.
    met: usize,
    line: Line,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Line {
    #[default]
    Begins,
    LeftOut,
    Given,
}

impl JsonLines {
    /// What of `bytes` belongs to other lines. A `{` at the end of them waits for what follows.
    pub fn without(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut rest = Vec::new();
        for byte in bytes {
            match self.line {
                Line::Begins if *byte == BEGINNING[self.met] => {
                    self.met += 1;
                    if self.met == BEGINNING.len() {
                        self.line = Line::LeftOut;
                    }
                    continue;
                }
                Line::Begins => {
                    rest.extend_from_slice(&BEGINNING[..self.met]);
                    self.line = Line::Given;
                }
                Line::LeftOut | Line::Given => {}
            }
            if self.line == Line::Given {
                rest.push(*byte);
            }
            if *byte == b'\n' {
                *self = Self::default();
            }
        }
        rest
    }
}

/// What has been shown of a run, so that nothing is said twice.
#[derive(Debug, Default)]
pub struct Spoken {
    /// Lines of its output, the oldest first, as hashes.
    shown: VecDeque<u64>,
    /// Its model's last words.
    last: String,
}

impl Spoken {
    /// A line of the output was shown as it came.
    pub fn shown(&mut self, line: &[u8]) {
        if self.shown.len() == MOST_SHOWN {
            self.shown.pop_front();
        }
        self.shown.push_back(hash(line));
    }

    /// What an event has to say that has not been said; may be empty.
    pub fn words<'m>(&mut self, activity: &Activity, message: &'m str) -> &'m str {
        match activity {
            Activity::Assistant => {
                message.clone_into(&mut self.last);
                if self.take_shown(message) { "" } else { message }
            }
            // Mostly the last words again.
            Activity::Final { .. } => {
                let end = message.strip_suffix(&self.last).and_then(|rest| rest.strip_suffix(": "));
                end.filter(|_| !self.last.is_empty()).unwrap_or(message)
            }
            Activity::ToolCall { .. } | Activity::ToolResult { .. } => message,
        }
    }

    /// Whether this very line was shown; events come in the order of their lines, and after them.
    fn take_shown(&mut self, line: &str) -> bool {
        let wanted = hash(line.as_bytes());
        let found = self.shown.iter().position(|shown| *shown == wanted);
        found.is_some_and(|at| self.shown.drain(..=at).next().is_some())
    }
}

fn hash(line: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_are_left_out_wherever_the_pieces_end() {
        let text = b"{\"type\":\"init\"}\nplain\n{not json}\n{\n{\"a\":\"{\\\"b\"}\nlast {\"x\"}";
        let expected = b"plain\n{not json}\n{\nlast {\"x\"}";
        for cut in 0..=text.len() {
            let mut lines = JsonLines::default();
            let mut rest = lines.without(&text[..cut]);
            rest.extend_from_slice(&lines.without(&text[cut..]));
            assert_eq!(rest, expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_long_json_line_is_left_out_whole() {
        let mut lines = JsonLines::default();
        assert!(lines.without(b"{\"text\":\"").is_empty());
        for _ in 0..100 {
            assert!(lines.without(&[b'x'; 65536]).is_empty());
        }
        assert_eq!(lines.without(b"\"}\nnext\n"), b"next\n");
    }

    #[test]
    fn nothing_is_said_twice() {
        let mut spoken = Spoken::default();
        spoken.shown(b"Aider v1");
        spoken.shown(b"I write it.");
        assert_eq!(spoken.words(&Activity::Assistant, "I write it."), "");
        assert_eq!(spoken.words(&Activity::Assistant, "I write it."), "I write it.", "said again");
        let last = Activity::Final { ok: true };
        assert_eq!(
            spoken.words(&last, "the CLI says that it is done: I write it."),
            "the CLI says that it is done"
        );
        assert_eq!(spoken.words(&last, "the CLI says that it is done"), "the CLI says that it is done");
        assert_eq!(
            spoken.words(&last, "the CLI says that it failed: 402"),
            "the CLI says that it failed: 402"
        );
        let call = Activity::ToolCall { tool: "Bash".to_owned(), argument: "ls".to_owned() };
        assert_eq!(spoken.words(&call, "→ Bash: ls"), "→ Bash: ls");
        for n in 0..MOST_SHOWN + 10 {
            spoken.shown(n.to_string().as_bytes());
        }
        assert_eq!(spoken.shown.len(), MOST_SHOWN);
        assert_eq!(spoken.words(&Activity::Assistant, "5"), "5", "too long ago");
    }
}
