//! Making hostile text harmless on a terminal.
//!
//! Output, file names and messages come from agents. A terminal obeys control characters (cursor,
//! title, clipboard, answers typed back), and bidirectional controls make text look like other text;
//! all of them are shown as what they are. Storage and pipes keep the bytes.

use std::fmt::Write;

/// Whether a terminal would act on this character, or hide it, instead of showing it.
pub const fn is_hazard(c: char) -> bool {
    matches!(
        c,
        '\0'..='\x1f' | '\x7f'..='\u{9f}'
        // Arabic letter mark, directional marks, line and paragraph separators, embeddings,
        // overrides, isolates.
        | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        // Invisible: byte order mark, interlinear annotations, tags.
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    )
}

/// One line for a terminal: tabs stay, every other hazard is spelled out, bytes that are not UTF-8 too.
pub fn push_line(line: &[u8], out: &mut String) {
    for chunk in line.utf8_chunks() {
        push_text(chunk.valid(), out);
        for byte in chunk.invalid() {
            push_hex(u32::from(*byte), out);
        }
    }
}

/// As [`push_line`], for text, as a value.
pub fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    push_text(text, &mut out);
    out
}

fn push_text(mut text: &str, out: &mut String) {
    while let Some((at, c)) = text.char_indices().find(|(_, c)| is_hazard(*c) && *c != '\t') {
        out.push_str(&text[..at]);
        push_hex(u32::from(c), out);
        text = &text[at + c.len_utf8()..];
    }
    out.push_str(text);
}

fn push_hex(code: u32, out: &mut String) {
    let result = if code <= 0xff { write!(out, "\\x{code:02x}") } else { write!(out, "\\u{{{code:x}}}") };
    // Writing to a String cannot fail.
    debug_assert!(result.is_ok());
}

/// JSON that is harmless on a terminal and means the same: hazards, which in JSON can only stand
/// inside strings, become `\u` escapes.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_hazard(*c)) {
        out.push_str(&rest[..at]);
        rest = &rest[at + c.len_utf8()..];
        if matches!(c, '\n' | '\r' | '\t') {
            // Between values these are only space.
            out.push(' ');
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let result = write!(out, "\\u{unit:04x}");
                debug_assert!(result.is_ok());
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(bytes: &[u8]) -> String {
        let mut out = String::new();
        push_line(bytes, &mut out);
        out
    }

    #[test]
    fn spells_out_what_a_terminal_would_obey() {
        for (bytes, shown) in [
            (&b"plain \xc3\xa4\ttext"[..], "plain ä\ttext"),
            (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
            (b"\x1b]52;c;aGk=\x1b\\", "\\x1b]52;c;aGk=\\x1b\\"),
            (b"over\rwritten\x08\x7f", "over\\x0dwritten\\x08\\x7f"),
            (b"\xc2\x9b2J", "\\x9b2J"),
            (b"\x9b2J\xff\xfe", "\\x9b2J\\xff\\xfe"),
            ("a\u{202e}b\u{2066}c\u{200f}".as_bytes(), "a\\u{202e}b\\u{2066}c\\u{200f}"),
            ("\u{2028}\u{feff}\u{e0041}".as_bytes(), "\\u{2028}\\u{feff}\\u{e0041}"),
            (b"a\0b\nc", "a\\x00b\\x0ac"),
            ("👩‍💻 日本語".as_bytes(), "👩‍💻 日本語"),
        ] {
            assert_eq!(escaped(bytes), shown);
        }
    }

    #[test]
    fn nothing_hazardous_is_left_of_any_character() {
        for c in '\0'..=char::MAX {
            let text = line(&c.to_string());
            assert!(text.chars().all(|c| c == '\t' || !is_hazard(c)), "{c:?}");
            assert_eq!(text.contains(c), c == '\t' || !is_hazard(c), "{c:?}");
        }
        for byte in 0..=u8::MAX {
            assert!(escaped(&[byte]).chars().all(|c| c == '\t' || !is_hazard(c)), "{byte:x}");
        }
    }

    #[test]
    fn json_means_the_same_and_has_no_hazard() {
        let value = serde_json::json!({"a\u{9b}": "x\u{202e}\u{e0041}\u{7f}\n\u{1b}é"});
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let safe = json(&text);
            assert!(!safe.chars().any(is_hazard), "{safe}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
        }
    }
}
