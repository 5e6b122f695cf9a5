//! The bytes of one run as it wrote them; on a terminal line by line, made harmless.

use std::collections::HashMap;
use std::io::{self, Write};

use crate::cli::lines::Lines;
use crate::cli::view::{View, notice};
use crate::cli::{escape, output};
use crate::client::event::{self, Payload};
use crate::client::follow::Update;

#[derive(Debug)]
pub struct RawView {
    escape: bool,
    /// What waits for its line end, by stream.
    lines: HashMap<String, Lines>,
}

impl RawView {
    /// `escape`: standard output is a terminal.
    pub fn new(escape: bool) -> Self {
        Self { escape, lines: HashMap::new() }
    }

    /// Writes output of one stream.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn write(&mut self, stream: &str, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        if !self.escape {
            stdout.write_all(bytes)?;
            return stdout.flush();
        }
        let mut text = String::new();
        let lines = self.lines.entry(stream.to_owned()).or_default();
        lines.push(bytes, |line| {
            escape::push_line(line, &mut text);
            text.push('\n');
        });
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }
}

impl View for RawView {
    fn update(&mut self, update: &Update) -> io::Result<()> {
        if let Some(text) = notice(update) {
            output::note(&text);
        }
        let Update::Event(event) = update else { return Ok(()) };
        let Payload::Log(log) = &event.payload else { return Ok(()) };
        let bytes = event::log_bytes(log).map_err(io::Error::other)?;
        self.write(&log.stream, &bytes)
    }

    fn finish(&mut self) -> io::Result<()> {
        let mut text = String::new();
        for lines in self.lines.values_mut() {
            lines.finish(|line| {
                escape::push_line(line, &mut text);
                text.push('\n');
            });
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }
}
