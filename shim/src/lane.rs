//! One output stream of the CLI, from the oldest byte that is not acknowledged to the
//! newest that was read.

use std::collections::VecDeque;

use kage_shim::protocol::MAX_OUTPUT;

/// A chunk at least this long is kept in the buffer that it was read into; a shorter one is
/// copied, so that no chunk holds much more memory than bytes.
pub const KEEP: usize = MAX_OUTPUT / 2;

/// What a chunk costs beyond its bytes, roughly; counted, so that single bytes of
/// alternating streams cannot take more memory than allowed.
pub const CHUNK_COST: u64 = 64;

struct Chunk {
    /// Place in the order of reads from both streams.
    sequence: u64,
    /// Of the first byte, within the stream.
    offset: u64,
    bytes: Vec<u8>,
}

impl Chunk {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// Where a lane's next frame begins.
#[derive(Debug, Clone, Copy)]
pub struct Cursor {
    index: usize,
    /// Offset of the frame's first byte within the stream.
    pub offset: u64,
}

#[derive(Default)]
pub struct Lane {
    chunks: VecDeque<Chunk>,
    /// Index of the first chunk that is not wholly sent.
    next: usize,
    acked: u64,
    sent: u64,
    end: u64,
}

impl Lane {
    /// Everything below was acknowledged.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Everything below was sent, in whole frames.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Everything below was read.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Memory that counts against the limit, in bytes.
    pub fn held(&self) -> u64 {
        self.end - self.acked + CHUNK_COST * self.chunks.len() as u64
    }

    /// Adds what was read as number `sequence`, and gives back a buffer that is free again.
    pub fn push(&mut self, sequence: u64, bytes: Vec<u8>) -> Option<Vec<u8>> {
        let offset = self.end;
        self.end += bytes.len() as u64;
        if bytes.len() < KEEP {
            self.chunks.push_back(Chunk { sequence, offset, bytes: bytes.as_slice().to_vec() });
            return Some(bytes);
        }
        self.chunks.push_back(Chunk { sequence, offset, bytes });
        None
    }

    /// Adds to the newest chunk, if that is number `newest`, has room and is not wholly sent.
    pub fn append(&mut self, newest: u64, bytes: &[u8]) -> bool {
        if self.next == self.chunks.len() {
            return false;
        }
        let Some(tail) = self.chunks.back_mut() else { return false };
        let fits = bytes.len() < KEEP && tail.bytes.len() + bytes.len() <= MAX_OUTPUT;
        if tail.sequence != newest || !fits {
            return false;
        }
        tail.bytes.extend_from_slice(bytes);
        self.end += bytes.len() as u64;
        true
    }

    /// Forgets all below `committed`, which must have been sent, and hands the emptied
    /// buffers to `free`.
    pub fn forget(&mut self, committed: u64, mut free: impl FnMut(Vec<u8>)) {
        self.acked = self.acked.max(committed);
        while self.chunks.front().is_some_and(|chunk| chunk.end() <= committed) {
            self.next = self.next.saturating_sub(1);
            self.chunks.pop_front().into_iter().for_each(|chunk| free(chunk.bytes));
        }
    }

    /// Sends again from the oldest byte that is not acknowledged.
    pub fn rewind(&mut self) {
        self.sent = self.acked;
        self.next = 0;
    }

    /// Where sending goes on.
    pub fn cursor(&self) -> Cursor {
        Cursor { index: self.next, offset: self.sent }
    }

    /// Number of the chunk at `cursor`; none if all is sent.
    pub fn sequence(&self, cursor: Cursor) -> Option<u64> {
        self.chunks.get(cursor.index).map(|chunk| chunk.sequence)
    }

    /// What can go into one frame at `cursor`, at most [`MAX_OUTPUT`] bytes.
    pub fn bytes(&self, cursor: Cursor) -> &[u8] {
        let Some(chunk) = self.chunks.get(cursor.index) else { return &[] };
        let from = usize::try_from(cursor.offset - chunk.offset).unwrap_or(usize::MAX);
        let rest = chunk.bytes.get(from..).unwrap_or_default();
        &rest[..rest.len().min(MAX_OUTPUT)]
    }

    /// The cursor behind a frame of `length` bytes at `cursor`.
    pub fn after(&self, cursor: Cursor, length: usize) -> Cursor {
        let offset = cursor.offset + length as u64;
        let done = self.chunks.get(cursor.index).is_some_and(|chunk| chunk.end() <= offset);
        Cursor { index: cursor.index + usize::from(done), offset }
    }

    /// Counts the frame at the lane's cursor as sent.
    pub fn mark_sent(&mut self, length: usize) {
        let Cursor { index, offset } = self.after(self.cursor(), length);
        self.next = index;
        self.sent = offset;
    }
}
