//! One JSON object per line per event.

use std::io::{self, Write};

use crate::cli::view::{View, notice};
use crate::cli::{escape, output};
use crate::client::follow::Update;

/// `{"id":…,"event":"…","data":…}` on standard output; trouble on the line goes to standard error.
#[derive(Debug, Default)]
pub struct JsonView;

impl View for JsonView {
    fn update(&mut self, update: &Update) -> io::Result<()> {
        let Update::Event(event) = update else {
            if let Some(text) = notice(update) {
                output::note(&text);
            }
            return Ok(());
        };
        let name = serde_json::to_string(&event.name)?;
        let text = format!("{{\"id\":{},\"event\":{name},\"data\":{}}}\n", event.id, event.data);
        let mut stdout = io::stdout().lock();
        // The line's own end is not to be escaped.
        stdout.write_all(escape::json(text.trim_end()).as_bytes())?;
        stdout.write_all(b"\n")?;
        stdout.flush()
    }

    fn finish(&mut self) -> io::Result<()> {
        io::stdout().lock().flush()
    }
}
