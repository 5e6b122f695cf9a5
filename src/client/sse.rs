//! Server-sent events: bytes to frames (WHATWG HTML, section 9.2.6), with a bound on what a frame
//! may hold. Pure: it knows no connection.

use std::collections::VecDeque;

/// The largest frame: a log block is at most 64 KiB, but a result names every changed file.
pub const MAX_FRAME: usize = 64 * 1024 * 1024;

/// One dispatched event. `id` is what this frame itself carried, not what an earlier one did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub id: Option<String>,
    pub event: String,
    pub data: String,
}

/// Why a stream cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    #[error("an event of more than {MAX_FRAME} bytes")]
    TooLong,
    #[error("an event that is not UTF-8")]
    NotUtf8,
}

/// Turns a stream's bytes into frames, however they are cut into pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The line that has not ended yet.
    line: Vec<u8>,
    /// The last byte was a CR: an LF that follows belongs to it.
    after_cr: bool,
    /// The stream's first line has been seen: no byte order mark any more.
    begun: bool,
    id: Option<Vec<u8>>,
    event: Vec<u8>,
    data: Vec<u8>,
    /// At least one `data` field, maybe empty.
    has_data: bool,
    frames: VecDeque<Frame>,
}

impl Decoder {
    /// Takes in more bytes; the frames that they complete wait for [`Decoder::pop`].
    ///
    /// # Errors
    /// [`SseError`]; the decoder is of no use afterwards.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), SseError> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                return self.extend_line(bytes);
            };
            self.after_cr = bytes[end] == b'\r';
            if self.line.is_empty() {
                self.end_line(&bytes[..end])?;
            } else {
                self.extend_line(&bytes[..end])?;
                let mut line = std::mem::take(&mut self.line);
                self.end_line(&line)?;
                line.clear();
                self.line = line;
            }
            bytes = &bytes[end + 1..];
        }
        Ok(())
    }

    /// The next complete frame.
    pub fn pop(&mut self) -> Option<Frame> {
        self.frames.pop_front()
    }

    fn extend_line(&mut self, bytes: &[u8]) -> Result<(), SseError> {
        self.check_room(bytes.len())?;
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn check_room(&self, more: usize) -> Result<(), SseError> {
        let held = self.line.len() + self.data.len() + self.event.len();
        if held + more > MAX_FRAME { Err(SseError::TooLong) } else { Ok(()) }
    }

    fn end_line(&mut self, mut line: &[u8]) -> Result<(), SseError> {
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        }
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => self.event = value.to_vec(),
            b"data" => {
                self.check_room(value.len() + 1)?;
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            b"id" if !value.contains(&0) => self.id = Some(value.to_vec()),
            // Comments (an empty field name), `retry`, and what a later version may add.
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self) -> Result<(), SseError> {
        let text = |bytes| String::from_utf8(bytes).map_err(|_| SseError::NotUtf8);
        let id = self.id.take().map(text).transpose()?;
        let event = text(std::mem::take(&mut self.event))?;
        let data = text(std::mem::take(&mut self.data))?;
        if std::mem::take(&mut self.has_data) {
            let event = if event.is_empty() { "message".to_owned() } else { event };
            self.frames.push_back(Frame { id, event, data });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(id: Option<&str>, event: &str, data: &str) -> Frame {
        Frame { id: id.map(str::to_owned), event: event.to_owned(), data: data.to_owned() }
    }

    fn decode(pieces: &[&[u8]]) -> Result<Vec<Frame>, SseError> {
        let mut decoder = Decoder::default();
        for piece in pieces {
            decoder.push(piece)?;
        }
        Ok(std::iter::from_fn(|| decoder.pop()).collect())
    }

    const STREAM: &str = "\u{feff}: hello\nevent: connected\ndata: {}\n\n: keep-alive\n\nid: 1\r\nevent:log\r\ndata: a\r\ndata:\r\ndata:  c\r\n\r\nid: 2\rdata: ü:x\r\rid\nretry: 5\nnonsense\n\ndata: cut off";

    fn expected() -> Vec<Frame> {
        vec![
            frame(None, "connected", "{}"),
            frame(Some("1"), "log", "a\n\n c"),
            frame(Some("2"), "message", "ü:x"),
        ]
    }

    #[test]
    fn reads_every_kind_of_line_end_and_field() {
        assert_eq!(decode(&[STREAM.as_bytes()]).unwrap(), expected());
    }

    #[test]
    fn cuts_at_every_place_change_nothing() {
        let bytes = STREAM.as_bytes();
        for cut in 0..=bytes.len() {
            assert_eq!(decode(&[&bytes[..cut], &bytes[cut..]]).unwrap(), expected(), "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(decode(&single).unwrap(), expected());
    }

    #[test]
    fn an_event_has_a_bound_in_one_line_or_in_many() {
        let block = vec![b'x'; 1024 * 1024];
        let mut decoder = Decoder::default();
        let result = (0..65).try_for_each(|_| decoder.push(&block));
        assert_eq!(result, Err(SseError::TooLong));

        let mut line = b"data: ".to_vec();
        line.extend_from_slice(&block);
        line.push(b'\n');
        let mut decoder = Decoder::default();
        let result = (0..65).try_for_each(|_| decoder.push(&line));
        assert_eq!(result, Err(SseError::TooLong));

        line.push(b'\n');
        let mut decoder = Decoder::default();
        for _ in 0..65 {
            decoder.push(&line).unwrap();
            assert!(decoder.pop().is_some());
        }
    }

    #[test]
    fn refuses_what_is_not_utf8() {
        assert_eq!(decode(&[b"data: \xff\n\n"]), Err(SseError::NotUtf8));
    }
}
