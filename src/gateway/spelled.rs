//! Secrets that a streamed answer spells over several of its events, as a model says a key token by token. The texts at
//! the same place of all events are read as one.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::redact::patterns::Patterns;
use crate::redact::stream::Stream;

/// Bytes of a place's name. What vendors stream in pieces has a shorter one; a model that names the fields itself, as in
/// a call of a tool, could else have each of thousands of texts named at length.
const LONGEST_PLACE: usize = 256;

/// A line of the stream.
struct Event<'a> {
    line: &'a str,
    /// Where its JSON is, if it has any.
    json: Option<(usize, Value)>,
    is_changed: bool,
}

/// What all events have at one place.
#[derive(Default)]
struct Spelled {
    text: String,
    /// Each event's number, and how many bytes are its own.
    pieces: Vec<(usize, usize)>,
}

/// The text with `*` for what its events spell. Where it is not whole, for what may be the beginning of a secret too.
pub(super) fn redact(patterns: &Patterns, text: &str, is_whole: bool) -> String {
    let mut events: Vec<Event<'_>> = text.split_inclusive('\n').map(Event::of).collect();
    let mut places: BTreeMap<String, Spelled> = BTreeMap::new();
    for (number, event) in events.iter().enumerate() {
        let Some((_, value)) = &event.json else { continue };
        texts(value, &mut String::new(), &mut |place, text| {
            let spelled = places.entry(place.to_owned()).or_default();
            spelled.text.push_str(text);
            spelled.pieces.push((number, text.len()));
        });
    }
    let mut waits = false;
    for (place, spelled) in &places {
        let mut stream = Stream::default();
        let mut out = stream.push(patterns, spelled.text.as_bytes()).into_owned();
        if is_whole {
            out.extend_from_slice(&stream.last(patterns));
        } else {
            waits |= stream.held() > 0;
            out.resize(spelled.text.len(), b'*');
        }
        if out != spelled.text.as_bytes() {
            spelled.write(place, &out, &mut events);
        }
    }
    // Half an event may go on with what waits.
    if waits && events.last().is_some_and(Event::is_half) {
        events.pop();
    }
    events.iter().map(Event::text).collect()
}

impl<'a> Event<'a> {
    fn of(line: &'a str) -> Self {
        let data = line.strip_prefix("data:").unwrap_or(line);
        let value = serde_json::from_str(data).ok().filter(|value: &Value| value.is_object());
        Self { line, json: value.map(|value| (line.len() - data.len(), value)), is_changed: false }
    }

    fn is_half(&self) -> bool {
        self.json.is_none() && !self.line.ends_with('\n')
    }

    fn text(&self) -> String {
        match &self.json {
            Some((at, value)) if self.is_changed => {
                let space = if self.line[*at..].starts_with(' ') { " " } else { "" };
                let end = &self.line[self.line.trim_end().len()..];
                format!("{}{space}{value}{end}", &self.line[..*at])
            }
            _ => self.line.to_owned(),
        }
    }
}

impl Spelled {
    /// Puts bytes in the place of these texts.
    fn write(&self, place: &str, bytes: &[u8], events: &mut [Event<'_>]) {
        let mut at = 0;
        for (number, len) in &self.pieces {
            let range = at..at + len;
            at = range.end;
            let new = &bytes[range.clone()];
            let event = &mut events[*number];
            if new != &self.text.as_bytes()[range]
                && let Some(text) = event.json.as_mut().and_then(|(_, value)| value.pointer_mut(place))
            {
                *text = Value::String(String::from_utf8_lossy(new).into_owned());
                event.is_changed = true;
            }
        }
    }
}

/// Every text of a value, with its place (RFC 6901).
fn texts(value: &Value, place: &mut String, tell: &mut impl FnMut(&str, &str)) {
    let end = place.len();
    if end > LONGEST_PLACE {
        return;
    }
    match value {
        Value::String(text) => tell(place, text),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                place.push_str(&format!("/{index}"));
                texts(item, place, tell);
                place.truncate(end);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                place.push('/');
                place.push_str(&name.replace('~', "~0").replace('/', "~1"));
                texts(field, place, tell);
                place.truncate(end);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;
    use serde_json::json;

    use super::*;

    const KEY: &str = "sk-ant-api03-Zq7Lw2Xv9Kt4Rm8Bn3Hd6Jf";
    const SECRET: &str = "planted/credential~9f2c41d7e8";

    fn patterns() -> Patterns {
        Patterns::new(&[SecretString::from(SECRET)])
    }

    /// As Anthropic, OpenAI and Ollama send it, in pieces of so many bytes.
    fn streams(text: &str, size: usize) -> [String; 3] {
        let pieces: Vec<&str> =
            text.as_bytes().chunks(size).map(|piece| std::str::from_utf8(piece).unwrap()).collect();
        let all = |form: &dyn Fn(&str) -> String| pieces.iter().map(|piece| form(piece)).collect();
        [
            all(&|piece| {
                format!(
                    "event: content_block_delta\ndata: {}\n\n",
                    json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": piece } })
                )
            }),
            all(&|piece| format!("data:{}\r\n\r\n", json!({ "choices": [{ "delta": { "a/b~c": piece } }] }))),
            all(&|piece| format!("{}\n", json!({ "message": { "content": piece }, "done": false }))),
        ]
    }

    #[test]
    fn a_secret_that_events_spell_together_is_found() {
        let patterns = patterns();
        for secret in [KEY, SECRET] {
            for size in 1..secret.len() {
                let starred = streams(&format!("it is {} .", "*".repeat(secret.len())), size);
                for (stream, starred) in streams(&format!("it is {secret} ."), size).iter().zip(starred) {
                    assert_eq!(redact(&patterns, stream, true), starred, "{size}");
                }
            }
        }
    }

    #[test]
    fn none_of_it_is_left_where_the_stream_is_cut() {
        let patterns = patterns();
        for secret in [KEY, SECRET] {
            for stream in streams(&format!("it is {secret} ."), 4) {
                for cut in 0..stream.len() {
                    // As `content` hands it over: what may begin a secret at the very end is gone.
                    let mut raw = Stream::default();
                    let raw = raw.push(&patterns, &stream.as_bytes()[..cut]).into_owned();
                    let text = redact(&patterns, &String::from_utf8(raw).unwrap(), false);
                    // The pieces that hold something of it and nothing else.
                    for piece in secret.as_bytes()[2..].chunks_exact(4) {
                        let piece = std::str::from_utf8(piece).unwrap();
                        assert!(!text.contains(piece), "{cut}: {piece} in {text}");
                    }
                }
            }
        }
    }

    /// Attack: one long name and thousands of texts below it.
    #[test]
    fn names_do_not_multiply() {
        let fields: serde_json::Map<String, Value> =
            (0..1000).map(|number| (number.to_string(), json!("x"))).collect();
        let (mut told, mut bytes) = (0, 0);
        for name in ["n".repeat(LONGEST_PLACE), "short".to_owned()] {
            texts(&json!({ name: fields }), &mut String::new(), &mut |place, _| {
                told += 1;
                bytes += place.len();
            });
        }
        assert_eq!(told, 1000);
        assert!(bytes < 1000 * LONGEST_PLACE);
    }

    #[test]
    fn what_holds_none_stays_as_it_is() {
        let text = "data: {\"b\": 1,  \"a\":\"sky\"}\n\n: ping\ndata: [DONE]\n\nhalf {\"a\":\"task";
        for is_whole in [true, false] {
            assert_eq!(redact(&patterns(), text, is_whole), text);
        }
    }
}
