//! Ollama's `/api/chat` and `/api/show`: what a request may hold. The server reads keys whatever their case, so
//! every object that it gives a meaning is cut down to the keys as written in its reference.
//! <https://github.com/ollama/ollama/blob/main/docs/api.md>

use serde_json::{Map, Value, json};

use crate::dialect::answer::Refusal;
use crate::dialect::scrub::{Outline, Scrub, bad, flag, is_base64, list_in, object, whole, word};

const FIELDS: &[&str] =
    &["format", "logprobs", "messages", "model", "options", "stream", "think", "tools", "top_logprobs"];

const MESSAGE: &[&str] =
    &["role", "content", "images", "thinking", "tool_calls", "tool_call_id", "tool_name"];

/// How to sample. What says where and how the server runs the model is the operator's.
const OPTIONS: &[&str] = &[
    "frequency_penalty",
    "min_p",
    "mirostat",
    "mirostat_eta",
    "mirostat_tau",
    "num_ctx",
    "num_keep",
    "num_predict",
    "penalize_newline",
    "presence_penalty",
    "repeat_last_n",
    "repeat_penalty",
    "seed",
    "stop",
    "temperature",
    "tfs_z",
    "top_k",
    "top_p",
    "typical_p",
];

/// Tokens of context: the server sets memory aside for all of them.
const MOST_CONTEXT: u64 = 262_144;

/// Checks a request in place.
pub(crate) fn check(body: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<Outline, Refusal> {
    // Written by a client library for other providers; this one passes over them.
    body.shift_remove("tool_choice");
    let wished = body.shift_remove("max_output_tokens");
    scrub.keep(body, FIELDS, "");
    if let Some(tools) = list_in(body, "tools")? {
        for mut tool in std::mem::take(tools) {
            if keep_tool(object(&mut tool, "a tool")?, scrub)? {
                tools.push(tool);
            }
        }
    }
    let messages = list_in(body, "messages")?.ok_or_else(|| bad("messages are missing"))?;
    for message in messages {
        check_message(object(message, "a message")?, scrub)?;
    }
    let output_limit = options(body, wished, scrub)?;
    // Said, for absent means true here.
    let stream = flag(body, "stream", true)?;
    body.insert("stream".to_owned(), stream.into());
    Ok(Outline { stream, output_limit })
}

/// Checks a question about a model, which the gateway answers.
pub(crate) fn check_show(body: &mut Map<String, Value>, scrub: &mut Scrub<'_>) {
    // The older name of the field.
    if let Some(name) = body.shift_remove("name") {
        body.entry("model").or_insert(name);
    }
    scrub.keep(body, &["model", "verbose"], "");
}

fn options(
    body: &mut Map<String, Value>,
    wished: Option<Value>,
    scrub: &mut Scrub<'_>,
) -> Result<u64, Refusal> {
    let options = body.entry("options").or_insert_with(|| json!({}));
    if options.is_null() {
        *options = json!({});
    }
    let options = object(options, "options")?;
    scrub.keep(options, OPTIONS, "options");
    if let Some(context) = options.get("num_ctx") {
        let context = whole(context).ok_or_else(|| bad("num_ctx is not a whole number"))?;
        if context > MOST_CONTEXT {
            scrub.note(format!("num_ctx over {MOST_CONTEXT}"));
            options.insert("num_ctx".to_owned(), MOST_CONTEXT.into());
        }
    }
    // Negative means without end, or until the context is full: the limit stands for both.
    if options.get("num_predict").and_then(Value::as_f64).is_some_and(|limit| limit < 0.0) {
        options.shift_remove("num_predict");
    }
    if let Some(wished) = wished {
        options.entry("num_predict").or_insert(wished);
    }
    scrub.cap_output(options, "num_predict")
}

fn keep_tool(tool: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<bool, Refusal> {
    match word(tool, "type").as_deref() {
        Some("function") => {
            scrub.keep(tool, &["type", "function"], "tools");
            Ok(true)
        }
        kind => {
            let kind = kind.unwrap_or("a tool without a type");
            scrub.server_tool(kind, kind)
        }
    }
}

fn check_message(message: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    scrub.keep(message, MESSAGE, "messages");
    if !matches!(message.get("content"), None | Some(Value::Null | Value::String(_))) {
        return Err(bad("content is not text"));
    }
    if let Some(images) = list_in(message, "images")? {
        for image in images {
            match image.as_str() {
                Some(data) if is_base64(data) => scrub.within(true, data),
                _ => {
                    scrub.reference("images")?;
                    scrub.outside(true);
                }
            }
        }
    }
    if let Some(calls) = list_in(message, "tool_calls")? {
        for call in calls {
            scrub.keep(object(call, "a tool call")?, &["id", "type", "function"], "tool_calls");
        }
    }
    Ok(())
}
