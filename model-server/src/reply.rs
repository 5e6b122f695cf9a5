//! What is to be said, in no dialect; and how long an answer is in frames.

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::script::Usage;

#[derive(Debug, Clone)]
pub struct Reply {
    pub model: String,
    /// From 0. Part of the ids.
    pub turn: usize,
    pub thinking: Option<String>,
    pub text: Option<String>,
    pub calls: Vec<Call>,
    /// `None`: the answer does not say.
    pub usage: Option<Usage>,
    pub stream_usage: bool,
}

#[derive(Debug, Clone)]
pub struct Call {
    pub id: String,
    pub name: String,
    pub namespace: Option<String>,
    pub input: CallInput,
}

#[derive(Debug, Clone)]
pub enum CallInput {
    Json(Map<String, Value>),
    Text(String),
}

impl CallInput {
    /// Arguments as the JSON text that most dialects carry.
    #[must_use]
    pub fn as_text(&self) -> String {
        match self {
            Self::Json(arguments) => Value::Object(arguments.clone()).to_string(),
            Self::Text(text) => text.clone(),
        }
    }

    #[must_use]
    pub fn as_value(&self) -> Value {
        match self {
            Self::Json(arguments) => Value::Object(arguments.clone()),
            Self::Text(text) => serde_json::json!({ "input": text }),
        }
    }
}

/// A streamed answer.
#[derive(Debug)]
pub struct Frames {
    pub frames: Vec<Bytes>,
    /// After this many frames, `filler` may be put in any number of times.
    pub filler_at: usize,
    /// A frame with [`FILLER`] as text.
    pub filler: Bytes,
}

/// What endless and huge answers are made of.
pub const FILLER: &str = "and so it goes on and on, and nobody knows when it will end; ";

/// Pieces of `text` as a model would send them: a few words each, never inside a character.
pub fn pieces(text: &str) -> Vec<&str> {
    const AT_LEAST: usize = 24;
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let cut = rest.char_indices().map(|(index, _)| index).find(|index| *index >= AT_LEAST);
        let (piece, after) = rest.split_at(cut.unwrap_or(rest.len()));
        found.push(piece);
        rest = after;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_text_again() {
        let text = "ein längerer Satz mit Umlauten, öfter als nötig: äöü äöü äöü";
        assert_eq!(pieces(text).concat(), text);
        assert!(pieces(text).len() > 1);
        assert!(pieces("").is_empty());
    }
}
