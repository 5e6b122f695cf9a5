//! A million numbered lines of 98 bytes: the script that writes them, and the check that all came in order.

use anyhow::{Result, ensure};

const LINES: u64 = 1_000_000;
const LINE: usize = 98;
const DIGITS: usize = 9;
pub const BYTES: u64 = LINES * LINE as u64;

/// A bash script that writes the lines, one write(2) each or through a buffer.
pub fn script(buffered: bool) -> String {
    let buffering = if buffered { 65_536 } else { 0 };
    format!(
        "exec python3 -S -c '\n\
         out = open(1, \"wb\", {buffering})\n\
         tail = b\" \" + b\"x\" * {} + b\"\\n\"\n\
         for number in range({LINES}):\n    \
             out.write(b\"%0{DIGITS}d\" % number + tail)\n\
         out.flush()'",
        LINE - DIGITS - 2
    )
}

/// What must come next.
pub struct Expected {
    line: [u8; LINE],
    /// Bytes of the line that have come.
    at: usize,
    bytes: u64,
}

impl Default for Expected {
    fn default() -> Self {
        let mut line = [b'x'; LINE];
        line[..DIGITS].fill(b'0');
        line[DIGITS] = b' ';
        line[LINE - 1] = b'\n';
        Self { line, at: 0, bytes: 0 }
    }
}

impl Expected {
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// # Errors
    /// At the first byte that is not the one that was written there.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let count = bytes.len().min(LINE - self.at);
            let same = bytes[..count] == self.line[self.at..self.at + count];
            ensure!(same, "another byte than was written, after {} bytes", self.bytes);
            bytes = &bytes[count..];
            self.bytes += count as u64;
            self.at += count;
            if self.at == LINE {
                self.at = 0;
                self.increment();
            }
        }
        Ok(())
    }

    fn increment(&mut self) {
        for digit in self.line[..DIGITS].iter_mut().rev() {
            if *digit < b'9' {
                *digit += 1;
                return;
            }
            *digit = b'0';
        }
    }
}
