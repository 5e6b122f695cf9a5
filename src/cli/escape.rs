//! Making hostile text harmless on a terminal.
//!
//! Output, file names and messages come from agents. A terminal obeys control characters (cursor,
//! title, clipboard, answers typed back), and bidirectional controls make text look like other text;
//! all of them are shown as what they are. Storage and pipes keep the bytes.

use std::fmt::Write;

/// Whether a terminal would act on this character, or hide it, instead of showing it: controls, line and paragraph
/// separators, and all that Unicode 16 calls `Cf` (format) or `Default_Ignorable_Code_Point`. Joiners and variation
/// selectors of honest emoji are among them: two names that look alike are worse than one that looks odd.
pub const fn is_hazard(c: char) -> bool {
    is_control(c) || is_format(c) || is_ignorable(c)
}

const fn is_control(c: char) -> bool {
    matches!(c, '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}' | '\u{2029}')
}

/// `DerivedGeneralCategory.txt`: `Cf`.
const fn is_format(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}' | '\u{891}' | '\u{8e2}'
        | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}'
        | '\u{2066}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
        | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}'
        | '\u{e0020}'..='\u{e007f}'
    )
}

/// `DerivedCoreProperties.txt`: `Default_Ignorable_Code_Point`; and the blank Braille pattern.
const fn is_ignorable(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}'
    )
}

/// A name of a file as a value: in quotes where its ends would not be seen, or where it has spaces that are none.
pub fn name(text: &str) -> String {
    let is_blank = |c: char| c.is_whitespace();
    let looks_otherwise = text.chars().any(|c| is_blank(c) && c != ' ' && !is_hazard(c));
    let unclear =
        text.is_empty() || text.starts_with(is_blank) || text.ends_with(is_blank) || looks_otherwise;
    if !unclear {
        return line(text);
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        if is_blank(c) && c != ' ' {
            push_hex(u32::from(c), &mut out);
        } else {
            push_text(c.encode_utf8(&mut [0; 4]), &mut out);
        }
    }
    out.push('"');
    out
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
            ("👩‍💻 日本語".as_bytes(), "👩\\u{200d}💻 日本語"),
            (
                "a\u{200b}b\u{200c}\u{2060}\u{ad}c\u{fe0f}".as_bytes(),
                "a\\u{200b}b\\u{200c}\\u{2060}\\xadc\\u{fe0f}",
            ),
            ("\u{3164}\u{2800}\u{34f}\u{e0100}".as_bytes(), "\\u{3164}\\u{2800}\\u{34f}\\u{e0100}"),
        ] {
            assert_eq!(escaped(bytes), shown);
        }
    }

    #[test]
    fn the_ends_of_a_name_are_seen() {
        for (name, shown) in [
            ("plain name", "plain name"),
            ("trailing ", "\"trailing \""),
            (" leading", "\" leading\""),
            ("", "\"\""),
            ("no\u{a0}break", "\"no\\xa0break\""),
            ("zero\u{200b}width", "zero\\u{200b}width"),
            ("tab\t", "\"tab\\x09\""),
        ] {
            assert_eq!(super::name(name), shown);
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
