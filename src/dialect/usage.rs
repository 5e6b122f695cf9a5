//! Reads from an answer, as it passes, what it cost and whether it was whole. Nothing is kept but the figures,
//! and nothing that a provider sends is an error here.

use crate::dialect::figures::{self, Counts, Event, Slot};
use crate::dialect::scan::Scanner;
use crate::domain::model::{Dialect, ModelUsage};

/// Bytes of an event's data that are kept to know the end mark by.
const MARK: &[u8] = b"[DONE]";
const FIELD: &[u8] = b"data:";
const BOM: &[u8] = b"\xef\xbb\xbf";

/// What was read of one answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// As the provider last counted; of an answer that broke off, what it had told by then.
    pub usage: Option<ModelUsage>,
    /// The answer came to an end of its own, be it an error event.
    pub complete: bool,
    /// What the provider said went wrong: at most some hundred bytes, without control characters.
    pub error: Option<String>,
    /// The model that answered.
    pub model: Option<String>,
}

/// How the answer is cut into events.
enum Framing {
    /// One JSON value.
    Whole,
    /// One a line.
    Lines {
        at_start: bool,
    },
    Sse(Sse),
}

/// Where in an event stream the reader is.
#[derive(Default)]
struct Sse {
    line: Line,
    /// The last byte was a carriage return: a line feed after it ends no other line.
    after_cr: bool,
    /// Lines of data in this event so far.
    data_lines: usize,
    /// The beginning of this event's data.
    mark: Vec<u8>,
    /// Bytes of a byte order mark that were passed over.
    bom: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    /// So many bytes of `data:` were read.
    Field(usize),
    /// Right after the colon.
    Space,
    Data,
    /// JSON without `data:` before it, over as many lines as it has: so Google's servers send an error.
    Bare,
    /// Another field, or a comment.
    Other,
}

impl Default for Line {
    fn default() -> Self {
        Self::Field(0)
    }
}

/// Reads one answer of a provider, in whatever pieces it comes.
pub struct UsageReader {
    dialect: Dialect,
    framing: Framing,
    scanner: Scanner<Slot>,
    event: Event,
    counts: Counts,
    reading: Reading,
}

impl UsageReader {
    /// For the answer to a call that asked for a stream, or did not.
    pub fn new(dialect: Dialect, stream: bool) -> Self {
        let framing = match (stream, dialect) {
            (false, _) => Framing::Whole,
            (true, Dialect::Ollama) => Framing::Lines { at_start: true },
            (true, _) => Framing::Sse(Sse::default()),
        };
        Self {
            dialect,
            framing,
            scanner: Scanner::new(figures::patterns(dialect)),
            event: Event::default(),
            counts: Counts::default(),
            reading: Reading::default(),
        }
    }

    /// Takes the next bytes of the answer.
    pub fn feed(&mut self, bytes: &[u8]) {
        match self.framing {
            Framing::Whole => self.scan(bytes),
            Framing::Lines { .. } => self.lines(bytes),
            Framing::Sse(_) => self.sse(bytes),
        }
    }

    /// Whether an event of the gateway's own could follow here without being glued to a half one.
    pub fn at_boundary(&self) -> bool {
        match &self.framing {
            Framing::Whole => true,
            Framing::Lines { at_start } => *at_start,
            Framing::Sse(sse) => sse.line == Line::Field(0) && sse.data_lines == 0,
        }
    }

    /// What was used, as far as it is known by now.
    pub fn usage(&self) -> Option<ModelUsage> {
        self.counts.usage(self.dialect)
    }

    /// The answer is over, or broke off.
    pub fn finish(mut self) -> Reading {
        self.end_event();
        self.reading.usage = self.usage();
        self.reading
    }

    fn scan(&mut self, bytes: &[u8]) {
        let event = &mut self.event;
        self.scanner.feed(bytes, &mut |slot, value| event.take_in(slot, value));
    }

    fn lines(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            self.scan(piece);
            let ended = piece.ends_with(b"\n");
            if ended {
                self.end_event();
            }
            self.framing = Framing::Lines { at_start: ended };
        }
    }

    fn sse(&mut self, mut bytes: &[u8]) {
        while let Some(&first) = bytes.first() {
            let Framing::Sse(sse) = &mut self.framing else { return };
            if sse.after_cr {
                sse.after_cr = false;
                if first == b'\n' {
                    bytes = &bytes[1..];
                    continue;
                }
            }
            if sse.bom < BOM.len() {
                if BOM[sse.bom] == first {
                    sse.bom += 1;
                    bytes = &bytes[1..];
                    continue;
                }
                sse.bom = BOM.len();
            }
            if matches!(first, b'\r' | b'\n') && sse.line != Line::Bare {
                let empty = sse.line == Line::Field(0);
                sse.line = Line::default();
                sse.after_cr = first == b'\r';
                if empty {
                    self.end_event();
                }
                bytes = &bytes[1..];
            } else {
                bytes = self.sse_text(bytes);
            }
        }
    }

    /// Takes bytes of one line.
    fn sse_text<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let Framing::Sse(sse) = &mut self.framing else { return &[] };
        match sse.line {
            Line::Field(0) if bytes[0] == b'{' && sse.data_lines == 0 => {
                sse.line = Line::Bare;
                bytes
            }
            Line::Bare => {
                let is_end = |b: &u8| matches!(b, b'\r' | b'\n');
                let end = bytes.iter().position(is_end).unwrap_or(bytes.len() - 1) + 1;
                let (text, rest) = bytes.split_at(end);
                self.scan(text);
                if self.scanner.is_over() {
                    self.end_event();
                    if let Framing::Sse(sse) = &mut self.framing {
                        sse.line =
                            if text.last().is_some_and(is_end) { Line::default() } else { Line::Other };
                        sse.after_cr = text.ends_with(b"\r");
                    }
                }
                rest
            }
            Line::Field(read) => {
                sse.line = match FIELD.get(read) {
                    Some(&expected) if expected == bytes[0] && read + 1 == FIELD.len() => Line::Space,
                    Some(&expected) if expected == bytes[0] => Line::Field(read + 1),
                    _ => Line::Other,
                };
                if sse.line == Line::Space {
                    sse.data_lines = sse.data_lines.saturating_add(1);
                    // The lines of one event's data are joined.
                    if sse.data_lines > 1 {
                        self.scan(b"\n");
                    }
                }
                &bytes[1..]
            }
            Line::Space => {
                sse.line = Line::Data;
                if bytes[0] == b' ' { &bytes[1..] } else { bytes }
            }
            Line::Data | Line::Other => {
                let end = memchr::memchr2(b'\r', b'\n', bytes).unwrap_or(bytes.len());
                let (text, rest) = bytes.split_at(end);
                if sse.line == Line::Data {
                    let room = (MARK.len() + 1).saturating_sub(sse.mark.len());
                    sse.mark.extend_from_slice(&text[..text.len().min(room)]);
                    self.scan(text);
                }
                rest
            }
        }
    }

    /// The event is whole, or the answer is over.
    fn end_event(&mut self) {
        let event = std::mem::take(&mut self.event);
        let whole = self.scanner.ended();
        self.scanner.reset();
        if let Framing::Sse(sse) = &mut self.framing {
            sse.data_lines = 0;
            if sse.mark == MARK && self.dialect == Dialect::Chat {
                self.reading.complete = true;
            }
            sse.mark.clear();
        }
        if !whole {
            return;
        }
        self.counts.merge(&event.counts);
        self.reading.complete |= event.is_last(self.dialect);
        if let Some(error) = event.error.filter(|_| self.reading.error.is_none()) {
            self.reading.error = Some(error.chars().filter(|c| !c.is_control()).collect());
        }
        if let Some(model) = event.model {
            self.reading.model = Some(model.chars().filter(|c| !c.is_control()).take(200).collect());
        }
    }
}
