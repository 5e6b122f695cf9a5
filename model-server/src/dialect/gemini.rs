//! Gemini generateContent and streamGenerateContent. Model and streaming are in the path, not in the body.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::conversation::{Conversation, Item, Tool, ToolInput};
use crate::dialect::frames::data;
use crate::dialect::parts::{list, string, text};
use crate::reply::{Call, FILLER, Frames, Reply, pieces};
use crate::script::Usage;

pub fn conversation(body: &Value) -> Conversation {
    let mut items = Vec::new();
    for content in list(body, "contents") {
        let model = string(content, "role") == "model";
        for part in list(content, "parts") {
            if model {
                let call = part.get("functionCall");
                let call_id = call.and_then(|call| call.get("id")?.as_str()).map(str::to_owned);
                items.push(Item::Assistant { call_id, is_call: call.is_some() });
            } else if part.get("functionResponse").is_some() {
                items.push(Item::ToolResult);
            } else if part.get("text").is_some() {
                items.push(Item::User(string(part, "text")));
            }
        }
    }
    let system = body.get("systemInstruction").or_else(|| body.get("system_instruction"));
    let system = system.and_then(|system| system.get("parts").or(Some(system))).map(text).unwrap_or_default();
    let groups = list(body, "tools").iter();
    let tools = groups
        .flat_map(|group| {
            [list(group, "functionDeclarations"), list(group, "function_declarations")].concat()
        })
        .map(|declaration| tool(&declaration))
        .collect();
    Conversation { stream_usage: true, system, items, tools, ..Conversation::default() }
}

fn tool(declaration: &Value) -> Tool {
    let schema = ["parametersJsonSchema", "parameters"].iter().find_map(|key| declaration.get(key));
    let input = ToolInput::Json(schema.cloned().unwrap_or_default());
    Tool { name: string(declaration, "name"), namespace: None, input }
}

pub fn whole(reply: &Reply) -> Value {
    let mut parts = Vec::new();
    parts.extend(reply.thinking.as_ref().map(|thinking| json!({ "text": thinking, "thought": true })));
    parts.extend(reply.text.as_ref().map(|text| json!({ "text": text })));
    parts.extend(reply.calls.iter().map(call));
    chunk(reply, parts, true)
}

fn call(call: &Call) -> Value {
    json!({ "functionCall": { "id": call.id, "name": call.name, "args": call.input.as_value() } })
}

fn chunk(reply: &Reply, parts: Vec<Value>, last: bool) -> Value {
    let mut candidate = json!({ "content": { "role": "model", "parts": parts }, "index": 0 });
    if last {
        candidate["finishReason"] = json!("STOP");
    }
    let mut chunk = json!({
        "candidates": [candidate], "modelVersion": reply.model, "responseId": format!("kage-{}", reply.turn),
    });
    if let Some(usage) = reply.usage {
        chunk["usageMetadata"] = tokens(usage, last);
    }
    chunk
}

/// Every chunk carries the count so far.
fn tokens(usage: Usage, last: bool) -> Value {
    let output = if last { usage.output } else { 1 };
    json!({
        "promptTokenCount": usage.input, "cachedContentTokenCount": usage.cached_input,
        "candidatesTokenCount": output, "totalTokenCount": usage.input + output,
    })
}

pub fn stream(reply: &Reply) -> Frames {
    let mut frames: Vec<Bytes> = Vec::new();
    let frame = |parts: Vec<Value>| data(&chunk(reply, parts, false));
    for piece in reply.thinking.as_deref().map(pieces).unwrap_or_default() {
        frames.push(frame(vec![json!({ "text": piece, "thought": true })]));
    }
    for piece in reply.text.as_deref().map(pieces).unwrap_or_default() {
        frames.push(frame(vec![json!({ "text": piece })]));
    }
    let filler_at = frames.len();
    for each in &reply.calls {
        frames.push(frame(vec![call(each)]));
    }
    frames.push(data(&chunk(reply, vec![json!({ "text": "" })], true)));
    Frames { frames, filler_at, filler: frame(vec![json!({ "text": FILLER })]) }
}
