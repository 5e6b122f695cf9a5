//! What each fuzz target does with its input, and what must hold whatever it is. `tests/dialect/corpus.rs`
//! includes this file, and runs the same over the corpus with stable Rust.

use kage::dialect::request::{Checked, OnServerTool, Rules, check};
use kage::dialect::route::{Call, route, upstream_path};
use kage::dialect::usage::{Reading, UsageReader};
use kage::domain::model::Dialect;
use serde_json::Value;

pub const RULES: Rules = Rules {
    server_tools: Vec::new(),
    on_server_tool: OnServerTool::Remove,
    remote_references: false,
    max_output_tokens: 32_000,
    default_output_tokens: 8_192,
};

/// Keys of which none may come through the check, wherever the dialect gives keys a meaning.
const WAYS_OUT: &[&str] = &[
    "background",
    "cachedContent",
    "container",
    "conversation",
    "mcp_servers",
    "metadata",
    "previous_response_id",
    "service_tier",
    "user",
    "web_search_options",
];

/// A request of one dialect.
pub fn request(dialect: Dialect, body: &[u8]) {
    for call in calls(dialect) {
        let Ok(checked) = check(dialect, &call, body, &RULES) else { continue };
        assert!(checked.output_limit <= RULES.max_output_tokens);
        assert!(checked.removed.len() <= 41 && checked.removed.iter().all(|what| what.len() < 1000));
        let top = checked.body.as_object().expect("a request is an object");
        for way in WAYS_OUT {
            assert!(!top.contains_key(*way), "{way} came through");
        }
        assert_no_reference(&checked, dialect);
        assert_settled(dialect, &call, &checked);
    }
}

/// What was checked once passes again, unchanged.
fn assert_settled(dialect: Dialect, call: &Call, checked: &Checked) {
    let text = checked.body.to_string();
    let again = check(dialect, call, text.as_bytes(), &RULES);
    // A model that only the path of Gemini names, or Ollama's older name, is there in both.
    let again = again.expect("what was checked passes again");
    assert_eq!(again.body, checked.body);
    assert_eq!(again.removed, Vec::<String>::new());
    assert_eq!((again.stream, again.output_limit), (checked.stream, checked.output_limit));
    assert_eq!(again.input_estimate, checked.input_estimate);
    let mut named = checked.clone();
    named.set_model(dialect, "model-of-ours");
    if dialect != Dialect::Gemini {
        assert_eq!(named.body["model"], "model-of-ours");
    }
    let path = upstream_path(dialect, call, "model-of-ours", checked.stream);
    assert!(path.is_empty() || path.starts_with('/'));
}

/// No image or document of a message names anything outside. What the model wrote, and what a tool takes or
/// gave, is the client's own matter.
fn assert_no_reference(checked: &Checked, dialect: Dialect) {
    let messages = match dialect {
        Dialect::Responses => "input",
        Dialect::Gemini => "contents",
        _ => "messages",
    };
    let Some(Value::Array(messages)) = checked.body.get(messages) else { return };
    for message in messages {
        for place in ["content", "parts", "output"] {
            for part in message.get(place).and_then(Value::as_array).into_iter().flatten() {
                for key in ["file_id", "file_url", "fileData"] {
                    assert!(part.get(key).is_none_or(Value::is_null), "{key} came through");
                }
                for image in [part.get("image_url"), part.pointer("/image_url/url")].into_iter().flatten() {
                    let inside = image.as_str().is_none_or(|url| url.starts_with("data:"));
                    assert!(inside, "{image} came through");
                }
                assert_ne!(part.pointer("/source/type"), Some(&Value::from("url")));
            }
        }
    }
}

fn calls(dialect: Dialect) -> Vec<Call> {
    let generate = Call::Generate { stream_hint: None, model_in_path: None };
    match dialect {
        Dialect::Anthropic => vec![generate, Call::CountTokens { model_in_path: None }],
        Dialect::Gemini => {
            let model = Some("gemini-2.5-pro".to_owned());
            vec![
                Call::Generate { stream_hint: Some(true), model_in_path: model.clone() },
                Call::CountTokens { model_in_path: model },
            ]
        }
        Dialect::Ollama => vec![generate, Call::Show],
        Dialect::Responses | Dialect::Chat => vec![generate],
    }
}

/// An answer: the first byte says of which dialect and whether streamed, the second where it is cut.
pub fn usage(input: &[u8]) {
    let [which, cut, answer @ ..] = input else { return };
    let dialect = Dialect::ALL[usize::from(*which >> 1) % Dialect::ALL.len()];
    let stream = which & 1 == 1;
    let whole = read(dialect, stream, answer, answer.len().max(1));
    assert!(whole.error.as_ref().is_none_or(|error| error.len() <= 2_000 && !error.contains('\n')));
    assert_eq!(read(dialect, stream, answer, 1), whole, "byte by byte");
    assert_eq!(read(dialect, stream, answer, usize::from(*cut).max(1)), whole, "in pieces of {cut}");
}

pub fn read(dialect: Dialect, stream: bool, answer: &[u8], step: usize) -> Reading {
    let mut reader = UsageReader::new(dialect, stream);
    answer.chunks(step).for_each(|piece| reader.feed(piece));
    reader.finish()
}

/// A method, a path and a query, parted by spaces; the first byte says of which dialect.
pub fn path(input: &[u8]) {
    let [which, rest @ ..] = input else { return };
    let dialect = Dialect::ALL[usize::from(*which) % Dialect::ALL.len()];
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let mut words = text.splitn(3, ' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let Ok(call) = route(dialect, method, path, words.next()) else { return };
    assert!(path.starts_with('/') && !path.contains(['%', '?', '#', '\\', ';']) && !path.contains("//"));
    assert!(!path.split('/').any(|segment| segment == ".."));
    let (Call::Generate { model_in_path: model, .. } | Call::CountTokens { model_in_path: model }) = &call
    else {
        return;
    };
    // Sent on, it is the same call again, but for a shorter way of writing it.
    let sent = upstream_path(
        dialect,
        &call,
        model.as_deref().unwrap_or("m"),
        matches!(call, Call::Generate { stream_hint: Some(true), .. }),
    );
    let (sent, query) =
        sent.split_once('?').map_or((sent.as_str(), None), |(path, query)| (path, Some(query)));
    assert_eq!(route(dialect, method, sent, query), Ok(call));
}
