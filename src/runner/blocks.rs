//! Output on its way to the database: blocks of up to 64 KiB, never cut within a UTF-8 character.

use std::mem;

use kage_shim::protocol::{Offsets, Stream};

use crate::db::events::NewEvent;

const BLOCK: usize = 64 * 1024;

/// Bytes of one stream that wait for the rest of their character: at most three.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
}

/// Blocks in the order in which the output came.
pub(super) struct Blocks {
    attempt: i32,
    /// Where the next byte of each stream belongs.
    next: Offsets,
    /// Position of the next byte in the run's whole output.
    position: i64,
    tails: [Tail; 2],
    open: Option<(Stream, Vec<u8>)>,
    ready: Vec<NewEvent>,
    bytes: usize,
}

const fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

impl Blocks {
    /// `committed` of this attempt's streams, `position` over all attempts.
    pub fn new(attempt: i32, committed: Offsets, position: i64) -> Self {
        let tails = [Tail::default(), Tail::default()];
        Self { attempt, next: committed, position, tails, open: None, ready: Vec::new(), bytes: 0 }
    }

    /// Bytes that came since the last time that all were taken.
    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn push(&mut self, stream: Stream, mut bytes: &[u8]) {
        self.bytes += bytes.len();
        while !bytes.is_empty() {
            if self.open.as_ref().is_none_or(|(open, _)| *open != stream) {
                self.close(false);
                self.open = Some((stream, mem::take(&mut self.tails[index(stream)].bytes)));
            }
            let Some((_, block)) = &mut self.open else { return };
            let fits = bytes.len().min(BLOCK - block.len());
            block.extend_from_slice(&bytes[..fits]);
            bytes = &bytes[fits..];
            if block.len() == BLOCK {
                self.close(false);
            }
        }
    }

    /// All blocks so far, with the stream ends and the position after them. `last`: nothing follows, so also
    /// the beginnings of characters that never came to an end.
    pub fn take(&mut self, last: bool) -> (Vec<NewEvent>, Offsets, i64) {
        self.close(last);
        if last {
            for stream in [Stream::Stdout, Stream::Stderr] {
                let tail = mem::take(&mut self.tails[index(stream)].bytes);
                self.emit(stream, tail);
            }
        }
        // What still waits for the rest of its character cannot be taken: nobody is to wake up for it.
        self.bytes = 0;
        (mem::take(&mut self.ready), self.next, self.position)
    }

    fn close(&mut self, last: bool) {
        let Some((stream, mut block)) = self.open.take() else { return };
        if !last {
            self.tails[index(stream)].bytes = block.split_off(block.len() - unfinished(&block));
        }
        self.emit(stream, block);
    }

    fn emit(&mut self, stream: Stream, bytes: Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len() as u64;
        let next = match stream {
            Stream::Stdout => &mut self.next.stdout,
            Stream::Stderr => &mut self.next.stderr,
        };
        self.ready.push(NewEvent::Log {
            attempt: self.attempt,
            stream: if stream == Stream::Stdout { 1 } else { 2 },
            offset: i64::try_from(*next).unwrap_or(i64::MAX),
            position: self.position,
            bytes,
        });
        *next += length;
        self.position = self.position.saturating_add_unsigned(length);
    }
}

/// How many bytes at the end begin a UTF-8 character that is not complete.
fn unfinished(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let needed = match byte {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => return 0,
        };
        return if needed > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(event: &NewEvent) -> (i16, i64, i64, &[u8]) {
        match event {
            NewEvent::Log { stream, offset, position, bytes, .. } => (*stream, *offset, *position, bytes),
            NewEvent::Other { .. } => panic!("only log blocks"),
        }
    }

    proptest! {
        /// However it comes and whenever it is taken: no byte lost, doubled or moved within its stream.
        #[test]
        fn every_byte_once(pieces in prop::collection::vec(
            (any::<bool>(), prop::collection::vec(any::<u8>(), 0..200), any::<bool>()), 0..40)) {
            let mut blocks = Blocks::new(1, Offsets::default(), 0);
            let (mut expected, mut events) = ([Vec::new(), Vec::new()], Vec::new());
            for (err, bytes, take) in &pieces {
                let stream = if *err { Stream::Stderr } else { Stream::Stdout };
                expected[index(stream)].extend_from_slice(bytes);
                blocks.push(stream, bytes);
                if *take {
                    events.extend(blocks.take(false).0);
                }
            }
            let (last, ends, position) = blocks.take(true);
            events.extend(last);
            let mut seen = [Vec::new(), Vec::new()];
            let mut at = 0;
            for event in &events {
                let (stream, offset, position, bytes) = parts(event);
                let stream = &mut seen[stream as usize - 1];
                prop_assert_eq!(offset as usize, stream.len());
                prop_assert_eq!(position, at);
                prop_assert!(!bytes.is_empty() && bytes.len() <= BLOCK);
                stream.extend_from_slice(bytes);
                at += bytes.len() as i64;
            }
            prop_assert_eq!(position, at);
            prop_assert_eq!(ends, Offsets { stdout: expected[0].len() as u64, stderr: expected[1].len() as u64 });
            prop_assert_eq!(&seen, &expected);
        }
    }

    #[test]
    fn nobody_is_woken_for_a_character_that_never_ends() {
        let mut blocks = Blocks::new(1, Offsets::default(), 0);
        blocks.push(Stream::Stdout, b"x\xe2\x82");
        assert_eq!((blocks.take(false).0.len(), blocks.len()), (1, 0));
        assert_eq!(blocks.take(true).2, 3, "it comes at the end");
    }

    #[test]
    fn characters_stay_whole_across_blocks_and_takes() {
        let text = "ä€😀".repeat(40_000);
        let mut blocks = Blocks::new(1, Offsets::default(), 0);
        let mut events = Vec::new();
        for piece in text.as_bytes().chunks(7) {
            blocks.push(Stream::Stdout, piece);
            events.extend(blocks.take(false).0);
        }
        blocks.push(Stream::Stdout, text.as_bytes());
        events.extend(blocks.take(true).0);
        for event in &events {
            assert!(std::str::from_utf8(parts(event).3).is_ok());
        }
    }
}
