//! Ollama's `/api/chat`. Calls have no ids.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::conversation::{Conversation, Item};
use crate::dialect::frames::line;
use crate::dialect::parts::{function, list, string};
use crate::reply::{FILLER, Frames, Reply, pieces};

/// Answers are the same whenever they are given.
const CREATED: &str = "2026-01-01T00:00:00Z";

pub fn conversation(body: &Value) -> Conversation {
    let mut items = Vec::new();
    let mut system = String::new();
    for message in list(body, "messages") {
        let content = string(message, "content");
        match string(message, "role").as_str() {
            "system" => system.push_str(&content),
            "assistant" => {
                let is_call = !list(message, "tool_calls").is_empty();
                items.push(Item::Assistant { call_id: None, is_call });
            }
            "tool" => items.push(Item::ToolResult),
            _ => items.push(Item::User(content)),
        }
    }
    Conversation {
        model: string(body, "model"),
        // Unlike everywhere else, streaming is the default.
        stream: body.get("stream").and_then(Value::as_bool).unwrap_or(true),
        stream_usage: true,
        system,
        items,
        tools: list(body, "tools").iter().filter_map(function).collect(),
    }
}

pub fn whole(reply: &Reply) -> Value {
    let mut message = json!({ "role": "assistant", "content": reply.text.as_deref().unwrap_or_default() });
    if let Some(thinking) = &reply.thinking {
        message["thinking"] = json!(thinking);
    }
    if !reply.calls.is_empty() {
        message["tool_calls"] = calls(reply);
    }
    end(reply, message)
}

fn calls(reply: &Reply) -> Value {
    let calls = reply.calls.iter();
    calls
        .map(|call| json!({ "function": { "name": call.name, "arguments": call.input.as_value() } }))
        .collect()
}

fn end(reply: &Reply, message: Value) -> Value {
    let mut answer = json!({
        "model": reply.model, "created_at": CREATED, "message": message, "done": true, "done_reason": "stop",
        "total_duration": 5_000_000, "load_duration": 1_000_000, "prompt_eval_duration": 1_000_000,
        "eval_duration": 3_000_000,
    });
    if let Some(usage) = reply.usage {
        answer["prompt_eval_count"] = json!(usage.input);
        answer["eval_count"] = json!(usage.output);
    }
    answer
}

pub fn stream(reply: &Reply) -> Frames {
    let frame = |message: Value| -> Bytes {
        line(&json!({ "model": reply.model, "created_at": CREATED, "message": message, "done": false }))
    };
    let mut frames = Vec::new();
    for piece in reply.thinking.as_deref().map(pieces).unwrap_or_default() {
        frames.push(frame(json!({ "role": "assistant", "content": "", "thinking": piece })));
    }
    for piece in reply.text.as_deref().map(pieces).unwrap_or_default() {
        frames.push(frame(json!({ "role": "assistant", "content": piece })));
    }
    let filler_at = frames.len();
    if !reply.calls.is_empty() {
        frames.push(frame(json!({ "role": "assistant", "content": "", "tool_calls": calls(reply) })));
    }
    frames.push(line(&end(reply, json!({ "role": "assistant", "content": "" }))));
    Frames { frames, filler_at, filler: frame(json!({ "role": "assistant", "content": FILLER })) }
}
