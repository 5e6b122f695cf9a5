//! Output on its way to the database: blocks of up to 64 KiB, never cut within a UTF-8 character.

use std::mem;
use std::time::Duration;

use kage_shim::protocol::{Offsets, Stream};

use crate::db::events::NewEvent;

const BLOCK: usize = 64 * 1024;
/// Changes from one stream to the other between two takes, of which each begins a block. Those beyond are not told apart:
/// a CLI that writes a byte to each in turn would make a row of every byte.
const SWITCHES: u32 = 16;
/// Blocks of a run as fine as that; later ones are gathered for longer.
const FINE: u64 = 20_000;
/// Between two takes at least: chatty CLIs are gathered.
const OFTEN: Duration = Duration::from_millis(15);
/// The same for a run that has had its fine blocks.
const SELDOM: Duration = Duration::from_millis(500);

/// Bytes of one stream that wait for the rest of their character: at most three.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
}

/// Blocks in the order in which the output came, as long as it does not change streams all the time.
pub(super) struct Blocks {
    attempt: i32,
    /// Where the next byte of each stream belongs.
    next: Offsets,
    /// Position of the next byte in the run's whole output.
    position: i64,
    tails: [Tail; 2],
    /// Of each stream.
    open: [Option<Vec<u8>>; 2],
    /// Since the last take.
    switches: u32,
    /// Of the whole attempt, as far as this process knows.
    emitted: u64,
    ready: Vec<NewEvent>,
    bytes: usize,
}

const fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

const fn other_than(stream: Stream) -> Stream {
    match stream {
        Stream::Stdout => Stream::Stderr,
        Stream::Stderr => Stream::Stdout,
    }
}

impl Blocks {
    /// `committed` of this attempt's streams, `position` over all attempts.
    pub fn new(attempt: i32, committed: Offsets, position: i64) -> Self {
        let tails = [Tail::default(), Tail::default()];
        let (open, ready) = ([None, None], Vec::new());
        let next = committed;
        Self { attempt, next, position, tails, open, switches: 0, emitted: 0, ready, bytes: 0 }
    }

    /// The same after a broken link: what was gathered is forgotten, how much it was is not.
    pub fn anew(&self, committed: Offsets, position: i64) -> Self {
        Self { emitted: self.emitted, ..Self::new(self.attempt, committed, position) }
    }

    /// How long to gather before the next take.
    pub fn pause(&self) -> Duration {
        if self.is_coarse() { SELDOM } else { OFTEN }
    }

    /// Whether the attempt has had its fine blocks.
    pub fn is_coarse(&self) -> bool {
        self.emitted >= FINE
    }

    /// Bytes that came since the last time that all were taken.
    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn push(&mut self, stream: Stream, mut bytes: &[u8]) {
        self.bytes += bytes.len();
        let here = index(stream);
        while !bytes.is_empty() {
            if self.open[here].is_none() {
                let other = self.open[1 - here].is_some();
                if other && self.switches < SWITCHES && !self.is_coarse() {
                    self.switches += 1;
                    self.close(other_than(stream), false);
                }
            }
            let tail = &mut self.tails[here].bytes;
            let block = self.open[here].get_or_insert_with(|| mem::take(tail));
            let fits = bytes.len().min(BLOCK - block.len());
            block.extend_from_slice(&bytes[..fits]);
            bytes = &bytes[fits..];
            if block.len() == BLOCK {
                self.close(stream, false);
            }
        }
    }

    /// All blocks so far, with the stream ends and the position after them. `last`: nothing follows, so also
    /// the beginnings of characters that never came to an end.
    pub fn take(&mut self, last: bool) -> (Vec<NewEvent>, Offsets, i64) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.close(stream, last);
        }
        self.switches = 0;
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

    fn close(&mut self, stream: Stream, last: bool) {
        let Some(mut block) = self.open[index(stream)].take() else { return };
        if !last {
            self.tails[index(stream)].bytes = block.split_off(block.len() - unfinished(&block));
        }
        self.emit(stream, block);
    }

    fn emit(&mut self, stream: Stream, bytes: Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        self.emitted += 1;
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

    /// 17 MB of single bytes were 956,000 rows.
    #[test]
    fn a_byte_to_each_stream_in_turn_makes_few_blocks() {
        let mut blocks = Blocks::new(1, Offsets::default(), 0);
        let mut rows = 0;
        for turn in 0..200_000 {
            blocks.push(Stream::Stdout, b"a");
            blocks.push(Stream::Stderr, b"b");
            if turn % 50 == 0 {
                rows += blocks.take(false).0.len() as u64;
            }
        }
        let (last, ends, _) = blocks.take(true);
        rows += last.len() as u64;
        assert_eq!(ends, Offsets { stdout: 200_000, stderr: 200_000 });
        // As fine as that until there were twenty thousand, and two a take from then on.
        assert!((FINE..FINE + 2 * 200_000 / 50).contains(&rows), "{rows}");
        assert!(blocks.is_coarse() && blocks.pause() == SELDOM);
        assert!(blocks.anew(ends, 400_000).is_coarse(), "a broken link changes nothing");
    }

    #[test]
    fn the_order_of_the_streams_is_kept_as_long_as_it_is_calm() {
        let mut blocks = Blocks::new(1, Offsets::default(), 0);
        for (stream, text) in [(Stream::Stdout, "one"), (Stream::Stderr, "two"), (Stream::Stdout, "three")] {
            blocks.push(stream, text.as_bytes());
        }
        let texts: Vec<Vec<u8>> = blocks.take(false).0.iter().map(|event| parts(event).3.to_vec()).collect();
        assert_eq!(texts, [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]);
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
