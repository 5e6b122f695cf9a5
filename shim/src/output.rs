//! The CLI's output between its pipes and the runner: kept until acknowledged, bounded,
//! sent in the order in which it was read.

use std::io::IoSlice;
use std::os::fd::BorrowedFd;

use kage_shim::protocol::{MAX_OUTPUT, OUTPUT_HEADER, Offsets, Stream, output_header};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use crate::copies::Copies;
use crate::lane::{CHUNK_COST, Cursor, Lane};

/// Emptied buffers kept for the next reads.
const SPARE_BUFFERS: usize = 16;

/// Frames handed to the kernel in one call.
const FRAMES_PER_WRITE: usize = 8;

/// What a read from one of the CLI's pipes gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    Bytes(usize),
    /// Nothing there at the moment.
    Empty,
    /// Nobody can write any more.
    End,
}

/// A frame at a lane's cursor, whole or partly written.
#[derive(Clone, Copy)]
struct Frame {
    stream: Stream,
    cursor: Cursor,
    length: usize,
    header: [u8; OUTPUT_HEADER],
    /// Bytes of header and payload that the kernel has taken.
    written: usize,
}

impl Frame {
    fn unwritten(&self) -> usize {
        self.header.len() + self.length - self.written
    }
}

pub struct Output {
    stdout: Lane,
    stderr: Lane,
    /// The frame that the kernel has taken a part of: it must be finished before any other.
    begun: Option<Frame>,
    limit: u64,
    /// Number of the newest chunk, over both streams.
    sequence: u64,
    spares: Vec<Vec<u8>>,
    copies: Option<Copies>,
}

impl Output {
    /// Keeps at most `limit` bytes, but never less than one frame.
    pub fn new(limit: u64, copies: Option<Copies>) -> Self {
        Self {
            copies,
            stdout: Lane::default(),
            stderr: Lane::default(),
            begun: None,
            limit: limit.max(MAX_OUTPUT as u64),
            sequence: 0,
            spares: Vec::new(),
        }
    }

    fn lane(&self, stream: Stream) -> &Lane {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    fn lane_mut(&mut self, stream: Stream) -> &mut Lane {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// The oldest bytes that can still be sent.
    pub fn acked(&self) -> Offsets {
        Offsets { stdout: self.stdout.acked(), stderr: self.stderr.acked() }
    }

    /// Bytes read so far.
    pub fn total(&self) -> Offsets {
        Offsets { stdout: self.stdout.end(), stderr: self.stderr.end() }
    }

    pub fn all_sent(&self) -> bool {
        [&self.stdout, &self.stderr].iter().all(|lane| lane.sent() == lane.end())
    }

    pub fn all_acked(&self) -> bool {
        self.acked() == self.total()
    }

    /// Bytes that one more chunk may have.
    fn room(&self) -> usize {
        let held = self.stdout.held() + self.stderr.held() + CHUNK_COST;
        usize::try_from(self.limit.saturating_sub(held)).unwrap_or(usize::MAX)
    }

    /// Whether more may be read from the CLI's pipes.
    pub fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// Reads once from one of the CLI's pipes, as far as there is room.
    ///
    /// # Errors
    /// Those of read(2), other than "nothing there".
    pub fn read_from(&mut self, stream: Stream, pipe: BorrowedFd<'_>) -> rustix::io::Result<Read> {
        let room = self.room();
        if room == 0 {
            return Ok(Read::Empty);
        }
        let mut buffer = self.spares.pop().unwrap_or_else(|| Vec::with_capacity(MAX_OUTPUT));
        let result = if room >= buffer.capacity() {
            rustix::io::read(pipe, spare_capacity(&mut buffer))
        } else {
            buffer.resize(room, 0);
            let result = rustix::io::read(pipe, buffer.as_mut_slice());
            buffer.truncate(result.unwrap_or(0));
            result
        };
        match result {
            Ok(count @ 1..) => {
                self.keep(stream, buffer);
                return Ok(Read::Bytes(count));
            }
            Ok(0) => self.keep_spare(buffer),
            Err(error) => {
                self.keep_spare(buffer);
                let later = matches!(error, Errno::AGAIN | Errno::INTR);
                return if later { Ok(Read::Empty) } else { Err(error) };
            }
        }
        Ok(Read::End)
    }

    fn keep(&mut self, stream: Stream, bytes: Vec<u8>) {
        if let Some(copies) = &self.copies {
            copies.write(stream, &bytes);
        }
        let newest = self.sequence;
        if self.lane_mut(stream).append(newest, &bytes) {
            return self.keep_spare(bytes);
        }
        self.sequence += 1;
        if let Some(free) = self.lane_mut(stream).push(newest + 1, bytes) {
            self.keep_spare(free);
        }
    }

    fn keep_spare(&mut self, buffer: Vec<u8>) {
        keep_spare(&mut self.spares, buffer);
    }

    /// Forgets what is committed.
    ///
    /// # Errors
    /// A sentence, when the offsets are beyond what was sent.
    pub fn acknowledge(&mut self, committed: Offsets) -> Result<(), String> {
        if committed.stdout > self.stdout.sent() || committed.stderr > self.stderr.sent() {
            return Err(format!("acknowledgement of {committed:?}, which was not sent"));
        }
        let spares = &mut self.spares;
        self.stdout.forget(committed.stdout, |buffer| keep_spare(spares, buffer));
        self.stderr.forget(committed.stderr, |buffer| keep_spare(spares, buffer));
        Ok(())
    }

    /// Starts anew on another connection, behind what is committed.
    ///
    /// # Errors
    /// A sentence, when bytes are asked for that are gone or were never sent.
    pub fn resume(&mut self, committed: Offsets) -> Result<(), String> {
        if committed.stdout < self.stdout.acked() || committed.stderr < self.stderr.acked() {
            return Err(format!("resumption from {committed:?}, but {:?} was acknowledged", self.acked()));
        }
        self.acknowledge(committed)?;
        self.begun = None;
        self.stdout.rewind();
        self.stderr.rewind();
        Ok(())
    }

    /// Hands frames to the runner until all is sent or the socket takes no more; true if all
    /// is sent.
    ///
    /// # Errors
    /// Those of writev(2), other than "no room".
    pub fn write_to(&mut self, socket: BorrowedFd<'_>) -> rustix::io::Result<bool> {
        loop {
            let frames = self.frames();
            if frames.is_empty() {
                return Ok(true);
            }
            let mut parts = Vec::with_capacity(2 * FRAMES_PER_WRITE);
            for frame in &frames {
                let bytes = &self.lane(frame.stream).bytes(frame.cursor)[..frame.length];
                let payload_written = frame.written.saturating_sub(frame.header.len());
                parts.push(IoSlice::new(&frame.header[frame.written.min(frame.header.len())..]));
                parts.push(IoSlice::new(&bytes[payload_written..]));
            }
            match rustix::io::writev(socket, &parts) {
                Ok(count) => self.count_written(frames, count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// The next frames, in the order in which their bytes were read.
    fn frames(&self) -> Vec<Frame> {
        let mut frames = Vec::with_capacity(FRAMES_PER_WRITE);
        let (mut stdout, mut stderr) = (self.stdout.cursor(), self.stderr.cursor());
        if let Some(begun) = self.begun {
            // Acknowledged chunks may have gone since, which moves the indices.
            let begun = Frame { cursor: self.lane(begun.stream).cursor(), ..begun };
            let cursor = if begun.stream == Stream::Stdout { &mut stdout } else { &mut stderr };
            *cursor = self.lane(begun.stream).after(begun.cursor, begun.length);
            frames.push(begun);
        }
        while frames.len() < FRAMES_PER_WRITE {
            let (stream, cursor) = match (self.stdout.sequence(stdout), self.stderr.sequence(stderr)) {
                (None, None) => break,
                (Some(_), None) => (Stream::Stdout, &mut stdout),
                (None, Some(_)) => (Stream::Stderr, &mut stderr),
                (Some(first), Some(second)) if first < second => (Stream::Stdout, &mut stdout),
                (Some(_), Some(_)) => (Stream::Stderr, &mut stderr),
            };
            let length = self.lane(stream).bytes(*cursor).len();
            let header = output_header(stream, cursor.offset, length);
            frames.push(Frame { stream, cursor: *cursor, length, header, written: 0 });
            *cursor = self.lane(stream).after(*cursor, length);
        }
        frames
    }

    fn count_written(&mut self, frames: Vec<Frame>, mut count: usize) {
        self.begun = None;
        for mut frame in frames {
            let taken = count.min(frame.unwritten());
            count -= taken;
            frame.written += taken;
            if frame.unwritten() == 0 {
                self.lane_mut(frame.stream).mark_sent(frame.length);
            } else {
                self.begun = (frame.written > 0).then_some(frame);
                return;
            }
        }
    }
}

fn keep_spare(spares: &mut Vec<Vec<u8>>, mut buffer: Vec<u8>) {
    if buffer.capacity() >= MAX_OUTPUT && spares.len() < SPARE_BUFFERS {
        buffer.clear();
        spares.push(buffer);
    }
}
