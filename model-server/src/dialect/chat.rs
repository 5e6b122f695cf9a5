//! OpenAI Chat Completions.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::conversation::{Conversation, Item};
use crate::dialect::frames::data;
use crate::dialect::parts::{flag, function, list, string, text};
use crate::reply::{Call, FILLER, Frames, Reply, pieces};
use crate::script::Usage;

/// Answers are the same whenever they are given.
const CREATED: u64 = 1_767_225_600;

pub fn conversation(body: &Value) -> Conversation {
    let mut items = Vec::new();
    let mut system = String::new();
    for message in list(body, "messages") {
        let content = text(&message.get("content").cloned().unwrap_or_default());
        match string(message, "role").as_str() {
            "system" | "developer" => system.push_str(&content),
            "assistant" => {
                let calls = list(message, "tool_calls");
                if calls.is_empty() {
                    items.push(Item::Assistant { call_id: None, is_call: false });
                }
                items.extend(
                    calls
                        .iter()
                        .map(|call| Item::Assistant { call_id: Some(string(call, "id")), is_call: true }),
                );
            }
            "tool" | "function" => items.push(Item::ToolResult),
            _ => items.push(Item::User(content)),
        }
    }
    Conversation {
        model: string(body, "model"),
        stream: flag(body, "stream"),
        stream_usage: body.get("stream_options").is_some_and(|options| flag(options, "include_usage")),
        system,
        items,
        tools: list(body, "tools").iter().filter_map(function).collect(),
    }
}

pub fn whole(reply: &Reply) -> Value {
    let mut message = json!({ "role": "assistant", "content": reply.text });
    if let Some(thinking) = &reply.thinking {
        message["reasoning_content"] = json!(thinking);
    }
    if !reply.calls.is_empty() {
        message["tool_calls"] = reply.calls.iter().map(call).collect();
    }
    let mut answer = envelope(reply, "chat.completion");
    answer["choices"] =
        json!([{ "index": 0, "message": message, "logprobs": null, "finish_reason": finish(reply) }]);
    if let Some(usage) = reply.usage {
        answer["usage"] = tokens(usage);
    }
    answer
}

fn envelope(reply: &Reply, object: &str) -> Value {
    json!({
        "id": format!("chatcmpl-kage-{}", reply.turn), "object": object, "created": CREATED, "model": reply.model,
        "system_fingerprint": "fp_kage",
    })
}

fn call(call: &Call) -> Value {
    let arguments = call.input.as_value().to_string();
    json!({ "id": call.id, "type": "function", "function": { "name": call.name, "arguments": arguments } })
}

fn finish(reply: &Reply) -> &'static str {
    if reply.calls.is_empty() { "stop" } else { "tool_calls" }
}

fn tokens(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.input, "completion_tokens": usage.output, "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": { "cached_tokens": usage.cached_input },
        "completion_tokens_details": { "reasoning_tokens": 0 },
    })
}

pub fn stream(reply: &Reply) -> Frames {
    let mut frames = vec![chunk(reply, &json!({ "role": "assistant", "content": "" }), None)];
    for piece in reply.thinking.as_deref().map(pieces).unwrap_or_default() {
        frames.push(chunk(reply, &json!({ "reasoning_content": piece }), None));
    }
    for piece in reply.text.as_deref().map(pieces).unwrap_or_default() {
        frames.push(chunk(reply, &json!({ "content": piece }), None));
    }
    let filler_at = frames.len();
    for (index, call) in reply.calls.iter().enumerate() {
        let start = json!({
            "index": index, "id": call.id, "type": "function", "function": { "name": call.name, "arguments": "" },
        });
        frames.push(chunk(reply, &json!({ "tool_calls": [start] }), None));
        let arguments = call.input.as_value().to_string();
        for piece in pieces(&arguments) {
            let delta = json!({ "tool_calls": [{ "index": index, "function": { "arguments": piece } }] });
            frames.push(chunk(reply, &delta, None));
        }
    }
    frames.push(chunk(reply, &json!({}), Some(finish(reply))));
    if let Some(usage) = reply.usage.filter(|_| reply.stream_usage) {
        let mut last = envelope(reply, "chat.completion.chunk");
        last["choices"] = json!([]);
        last["usage"] = tokens(usage);
        frames.push(data(&last));
    }
    frames.push(Bytes::from_static(b"data: [DONE]\n\n"));
    Frames { frames, filler_at, filler: chunk(reply, &json!({ "content": FILLER }), None) }
}

fn chunk(reply: &Reply, delta: &Value, finish: Option<&str>) -> Bytes {
    let mut chunk = envelope(reply, "chat.completion.chunk");
    chunk["choices"] = json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish }]);
    data(&chunk)
}
