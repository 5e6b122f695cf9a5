//! Anthropic Messages.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::conversation::{Conversation, Item, Tool, ToolInput};
use crate::dialect::frames::event;
use crate::dialect::parts::{flag, list, string, text};
use crate::reply::{Call, FILLER, Frames, Reply, pieces};
use crate::script::Usage;

pub fn conversation(body: &Value) -> Conversation {
    let mut items = Vec::new();
    for message in list(body, "messages") {
        let assistant = string(message, "role") == "assistant";
        match message.get("content") {
            Some(Value::Array(blocks)) => {
                items.extend(blocks.iter().filter_map(|block| item(block, assistant)))
            }
            _ if assistant => items.push(Item::Assistant { call_id: None, is_call: false }),
            content => items.push(Item::User(content.map(text).unwrap_or_default())),
        }
    }
    Conversation {
        model: string(body, "model"),
        stream: flag(body, "stream"),
        stream_usage: true,
        system: text(&body.get("system").cloned().unwrap_or_default()),
        items,
        tools: list(body, "tools").iter().filter_map(tool).collect(),
    }
}

fn item(block: &Value, assistant: bool) -> Option<Item> {
    let kind = string(block, "type");
    if assistant {
        let is_call = kind == "tool_use";
        return Some(Item::Assistant { call_id: is_call.then(|| string(block, "id")), is_call });
    }
    match kind.as_str() {
        "tool_result" => Some(Item::ToolResult),
        "text" => Some(Item::User(string(block, "text"))),
        _ => None,
    }
}

/// Server-side tools have a type and no schema: they are none that a client runs.
fn tool(tool: &Value) -> Option<Tool> {
    let schema = tool.get("input_schema")?.clone();
    Some(Tool { name: string(tool, "name"), namespace: None, input: ToolInput::Json(schema) })
}

pub fn whole(reply: &Reply) -> Value {
    let mut content = Vec::new();
    if let Some(thinking) = &reply.thinking {
        content.push(json!({ "type": "thinking", "thinking": thinking, "signature": SIGNATURE }));
    }
    if let Some(text) = &reply.text {
        content.push(json!({ "type": "text", "text": text }));
    }
    for call in &reply.calls {
        content.push(
            json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": call.input.as_value() }),
        );
    }
    let mut message = message(reply, content);
    message["stop_reason"] = json!(stop_reason(reply));
    if let Some(usage) = reply.usage {
        message["usage"] = tokens(usage, usage.output);
    }
    message
}

const SIGNATURE: &str = "a2FnZQ==";

fn message(reply: &Reply, content: Vec<Value>) -> Value {
    json!({
        "id": format!("msg_kage_{}", reply.turn), "type": "message", "role": "assistant", "model": reply.model,
        "content": content, "stop_reason": null, "stop_sequence": null,
    })
}

fn stop_reason(reply: &Reply) -> &'static str {
    if reply.calls.is_empty() { "end_turn" } else { "tool_use" }
}

/// `input_tokens` does not count what the cache had.
fn tokens(usage: Usage, output: u64) -> Value {
    json!({
        "input_tokens": usage.input.saturating_sub(usage.cached_input + usage.cache_write),
        "cache_creation_input_tokens": usage.cache_write, "cache_read_input_tokens": usage.cached_input,
        "output_tokens": output,
    })
}

pub fn stream(reply: &Reply) -> Frames {
    let mut start = message(reply, Vec::new());
    if let Some(usage) = reply.usage {
        // The true count of output comes at the end; here it is what is there when the stream begins.
        start["usage"] = tokens(usage, 1);
    }
    let mut frames = vec![
        event("message_start", &json!({ "type": "message_start", "message": start })),
        event("ping", &json!({ "type": "ping" })),
    ];
    let mut index = 0;
    let (mut filler_at, mut filler) = (frames.len(), Bytes::new());
    if let Some(thinking) = &reply.thinking {
        let empty = json!({ "type": "thinking", "thinking": "", "signature": "" });
        let mut deltas: Vec<Value> =
            pieces(thinking).iter().map(|p| json!({ "type": "thinking_delta", "thinking": p })).collect();
        deltas.push(json!({ "type": "signature_delta", "signature": SIGNATURE }));
        frames.extend(block(index, empty, deltas));
        index += 1;
    }
    if let Some(text) = &reply.text {
        let deltas = pieces(text).iter().map(|p| json!({ "type": "text_delta", "text": p })).collect();
        frames.extend(block(index, json!({ "type": "text", "text": "" }), deltas));
        filler_at = frames.len() - 1;
        filler = delta(index, &json!({ "type": "text_delta", "text": FILLER }));
        index += 1;
    }
    for call in &reply.calls {
        frames.extend(tool_use(index, call));
        index += 1;
    }
    let mut end = json!({
        "type": "message_delta", "delta": { "stop_reason": stop_reason(reply), "stop_sequence": null },
    });
    if let Some(usage) = reply.usage {
        end["usage"] = tokens(usage, usage.output);
    }
    frames.push(event("message_delta", &end));
    frames.push(event("message_stop", &json!({ "type": "message_stop" })));
    Frames { frames, filler_at, filler }
}

fn tool_use(index: usize, call: &Call) -> Vec<Bytes> {
    let empty = json!({ "type": "tool_use", "id": call.id, "name": call.name, "input": {} });
    let arguments = call.input.as_value().to_string();
    let deltas =
        pieces(&arguments).into_iter().map(|p| json!({ "type": "input_json_delta", "partial_json": p }));
    block(index, empty, deltas.collect())
}

fn block(index: usize, empty: Value, deltas: Vec<Value>) -> Vec<Bytes> {
    let start = json!({ "type": "content_block_start", "index": index, "content_block": empty });
    let mut frames = vec![event("content_block_start", &start)];
    frames.extend(deltas.iter().map(|value| delta(index, value)));
    frames.push(event("content_block_stop", &json!({ "type": "content_block_stop", "index": index })));
    frames
}

fn delta(index: usize, value: &Value) -> Bytes {
    event("content_block_delta", &json!({ "type": "content_block_delta", "index": index, "delta": value }))
}
