//! Arguments of a call: those that the script gives, and a sensible value for each further one that is required.

use serde_json::{Map, Value, json};

use crate::conversation::{Tool, ToolInput};
use crate::reply::CallInput;
use crate::tools::known::{Wanted, name_in};

/// What goes into arguments of which the script knows nothing (a description, a reason).
const WORDS: &str = "A step of the script";

/// `workspace`: what relative paths are put under.
pub fn fill(tool: &Tool, wanted: &Wanted<'_>, workspace: &str) -> CallInput {
    let ToolInput::Json(schema) = &tool.input else { return CallInput::Text(String::new()) };
    let mut arguments = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object);
    for argument in &wanted.arguments {
        let Some(name) = name_in(tool, argument) else { continue };
        let property = properties.and_then(|properties| properties.get(name));
        let value = if argument.is_path && !argument.value.starts_with('/') {
            Value::String(format!("{}/{}", workspace.trim_end_matches('/'), argument.value))
        } else if property.is_some_and(|property| has_type(property, "array")) {
            json!(["/bin/sh", "-c", argument.value])
        } else {
            Value::String(argument.value.to_owned())
        };
        arguments.insert(name.to_owned(), value);
    }
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    for name in required.filter_map(Value::as_str) {
        if !arguments.contains_key(name) {
            let property = properties.and_then(|properties| properties.get(name));
            arguments.insert(name.to_owned(), property.map_or(Value::String(WORDS.into()), any_value));
        }
    }
    CallInput::Json(arguments)
}

/// The simplest value that this schema takes, as far as it is easily told.
fn any_value(schema: &Value) -> Value {
    for key in ["default", "const"] {
        if let Some(value) = schema.get(key) {
            return value.clone();
        }
    }
    if let Some(first) = schema.get("enum").and_then(|values| values.get(0)) {
        return first.clone();
    }
    if let Some(first) = ["anyOf", "oneOf"].iter().find_map(|key| schema.get(key)?.get(0)) {
        return any_value(first);
    }
    let is = |name| has_type(schema, name);
    if is("boolean") {
        Value::Bool(false)
    } else if is("integer") || is("number") {
        schema.get("minimum").cloned().unwrap_or(json!(1))
    } else if is("array") {
        json!([])
    } else if is("object") {
        json!({})
    } else {
        Value::String(WORDS.into())
    }
}

/// JSON Schema types; Gemini writes them in capitals.
fn has_type(schema: &Value, name: &str) -> bool {
    match schema.get("type") {
        Some(Value::String(given)) => given.eq_ignore_ascii_case(name),
        Some(Value::Array(given)) => {
            given.iter().filter_map(Value::as_str).any(|given| given.eq_ignore_ascii_case(name))
        }
        _ => false,
    }
}
