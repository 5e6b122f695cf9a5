//! Forms that several dialects share.

use serde_json::Value;

use crate::conversation::{Tool, ToolInput};

/// Text of a content that is a string or a list of parts with `text`.
pub fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts = parts.iter().filter_map(|part| part.as_str().or_else(|| part.get("text")?.as_str()));
            texts.collect::<Vec<_>>().join("\n")
        }
        Value::Object(part) => part.get("text").and_then(Value::as_str).unwrap_or_default().to_owned(),
        _ => String::new(),
    }
}

pub fn string(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

pub fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// A tool of Chat Completions or Ollama: `{type: "function", function: {name, parameters}}`.
pub fn function(tool: &Value) -> Option<Tool> {
    let function = tool.get("function")?;
    let name = function.get("name")?.as_str()?.to_owned();
    let schema = function.get("parameters").cloned().unwrap_or_default();
    Some(Tool { name, namespace: None, input: ToolInput::Json(schema) })
}
