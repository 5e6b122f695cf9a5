//! What others wrote stands in fields: names, errors, messages of git and of the engine. An event is one line
//! whatever they hold, and a terminal obeys nothing in it.

use std::fmt::Write as _;
use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;

/// Makes a line of every event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lines {
    pub json: bool,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { json: self.json }
    }
}

/// The subscriber writes an event in one go.
pub(super) struct Line {
    json: bool,
}

impl Write for Line {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        io::stderr().lock().write_all(one_line(event, self.json).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The event with all that ends a line, moves a cursor, reorders or hides spelled out. In JSON it can only stand in
/// strings, and means the same afterwards.
fn one_line(event: &[u8], json: bool) -> String {
    let text = String::from_utf8_lossy(event);
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let mut line = String::with_capacity(text.len() + 1);
    for char in text.chars() {
        if !is_hazard(char) {
            line.push(char);
        } else if json {
            for unit in char.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(line, "\\u{unit:04x}");
            }
        } else {
            line.extend(char.escape_unicode());
        }
    }
    line.push('\n');
    line
}

fn is_hazard(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::format::JsonFields;

    use super::*;
    use crate::telemetry::flat::Flat;

    const FORGED: &str = "x\n{\"level\":\"INFO\",\"message\":\"forged\"}\r\u{1b}[2J\u{9b}31m\u{202e}\u{2028}\0\u{85}\u{e0041} end";

    /// Keeps what would have been written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<String>>, bool);

    impl Write for Kept {
        fn write(&mut self, event: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("whole").push_str(&one_line(event, self.1));
            Ok(event.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool) -> String {
        let kept = Kept(Arc::default(), json);
        let writer = kept.clone();
        let builder = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        let log = || {
            tracing::info!(name = FORGED, shown = %FORGED, debug = ?FORGED, "an {FORGED} event");
            tracing::error!(error = %io::Error::other(FORGED), "second");
        };
        if json {
            let flat = builder.fmt_fields(JsonFields::new()).event_format(Flat);
            tracing::subscriber::with_default(flat.finish(), log);
        } else {
            tracing::subscriber::with_default(builder.finish(), log);
        }
        let text = kept.0.lock().expect("whole");
        text.clone()
    }

    #[test]
    fn an_event_is_one_line_whatever_its_fields_hold() {
        for json in [true, false] {
            let text = logged(json);
            assert_eq!(text.lines().count(), 2, "{text:?}");
            assert!(text.lines().all(|line| !line.chars().any(is_hazard)), "{text:?}");
            assert!(
                !text.lines().any(|line| line.starts_with("{\"level\":\"INFO\",\"message\":\"forged\"")),
                "{text:?}"
            );
        }
    }

    #[test]
    fn json_means_the_same() {
        let text = logged(true);
        let events: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!((&events[0]["name"], &events[0]["shown"]), (&FORGED.into(), &FORGED.into()));
        assert_eq!(events[1]["error"], FORGED);
    }
}
