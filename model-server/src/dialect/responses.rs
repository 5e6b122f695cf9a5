//! OpenAI Responses.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::conversation::{Conversation, Item, Tool, ToolInput};
use crate::dialect::frames::event;
use crate::dialect::parts::{flag, list, string, text};
use crate::reply::{Call, CallInput, FILLER, Frames, Reply, pieces};
use crate::script::Usage;

/// Answers are the same whenever they are given.
const CREATED: u64 = 1_767_225_600;

pub fn conversation(body: &Value) -> Conversation {
    let mut items = Vec::new();
    let mut system = string(body, "instructions");
    if let Some(Value::String(prompt)) = body.get("input") {
        items.push(Item::User(prompt.clone()));
    }
    for entry in list(body, "input") {
        let kind = string(entry, "type");
        match (kind.as_str(), string(entry, "role").as_str()) {
            ("message" | "", "assistant") => items.push(Item::Assistant { call_id: None, is_call: false }),
            ("message" | "", role) => {
                let content = text(&entry.get("content").cloned().unwrap_or_default());
                if role == "user" { items.push(Item::User(content)) } else { system.push_str(&content) }
            }
            (kind, _) if kind.ends_with("_call") => {
                items.push(Item::Assistant { call_id: Some(string(entry, "call_id")), is_call: true });
            }
            (kind, _) if kind.ends_with("_call_output") => items.push(Item::ToolResult),
            _ => {}
        }
    }
    Conversation {
        model: string(body, "model"),
        stream: flag(body, "stream"),
        stream_usage: true,
        system,
        items,
        tools: list(body, "tools").iter().flat_map(|tool| tools(tool, None)).collect(),
    }
}

/// Hosted tools (web search and the like) are none that a client runs.
fn tools(tool: &Value, namespace: Option<&str>) -> Vec<Tool> {
    let name = string(tool, "name");
    let input = match string(tool, "type").as_str() {
        "function" => ToolInput::Json(tool.get("parameters").cloned().unwrap_or_default()),
        "custom" => ToolInput::Text,
        "namespace" => return list(tool, "tools").iter().flat_map(|each| tools(each, Some(&name))).collect(),
        _ => return Vec::new(),
    };
    vec![Tool { name, namespace: namespace.map(str::to_owned), input }]
}

pub fn whole(reply: &Reply) -> Value {
    response(reply, "completed", entries(reply).into_iter().map(|entry| entry.done).collect(), true)
}

/// The response of a `response.failed` event.
pub fn failed(message: &str) -> Value {
    json!({
        "type": "response.failed",
        "response": {
            "id": "resp_kage", "object": "response", "status": "failed", "output": [],
            "error": { "code": "server_is_overloaded", "message": message },
        },
    })
}

fn response(reply: &Reply, status: &str, output: Vec<Value>, done: bool) -> Value {
    let usage = reply.usage.filter(|_| done).map(tokens);
    json!({
        "id": format!("resp_kage_{}", reply.turn), "object": "response", "created_at": CREATED, "status": status,
        "model": reply.model, "output": output, "error": null, "incomplete_details": null,
        "parallel_tool_calls": true, "store": false, "usage": usage,
    })
}

fn tokens(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.input, "input_tokens_details": { "cached_tokens": usage.cached_input },
        "output_tokens": usage.output, "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": usage.input + usage.output,
    })
}

/// One entry of the output: as it is added, what is said of it meanwhile, and as it is when done.
struct Entry {
    added: Value,
    /// Name and fields of each event between.
    between: Vec<(&'static str, Value)>,
    /// Where among `between` more text may come.
    text: Option<usize>,
    done: Value,
}

fn entries(reply: &Reply) -> Vec<Entry> {
    let mut found = Vec::new();
    found.extend(reply.thinking.as_deref().map(|thinking| reasoning(reply, thinking)));
    found.extend(reply.text.as_deref().map(|text| message(reply, text)));
    found.extend(reply.calls.iter().map(|each| match &each.input {
        CallInput::Json(_) => function_call(each),
        CallInput::Text(input) => custom_call(each, input),
    }));
    found
}

fn reasoning(reply: &Reply, thinking: &str) -> Entry {
    let id = format!("rs_kage_{}", reply.turn);
    let part = json!({ "type": "summary_text", "text": thinking });
    let mut between = vec![(
        "response.reasoning_summary_part.added",
        json!({ "summary_index": 0, "part": { "type": "summary_text", "text": "" } }),
    )];
    for piece in pieces(thinking) {
        between
            .push(("response.reasoning_summary_text.delta", json!({ "summary_index": 0, "delta": piece })));
    }
    between.push(("response.reasoning_summary_text.done", json!({ "summary_index": 0, "text": thinking })));
    between.push(("response.reasoning_summary_part.done", json!({ "summary_index": 0, "part": part })));
    Entry {
        added: json!({ "id": id, "type": "reasoning", "summary": [] }),
        between,
        text: None,
        done: json!({ "id": id, "type": "reasoning", "summary": [part], "encrypted_content": null }),
    }
}

fn message(reply: &Reply, text: &str) -> Entry {
    let id = format!("msg_kage_{}", reply.turn);
    let part = |text: &str| json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] });
    let whole = |status: &str, content: Value| json!({ "id": id, "type": "message", "role": "assistant", "status": status, "content": content });
    let mut between = vec![("response.content_part.added", json!({ "content_index": 0, "part": part("") }))];
    between.extend(pieces(text).iter().map(|piece| text_delta(piece)));
    let text_at = between.len();
    between.push(("response.output_text.done", json!({ "content_index": 0, "text": text, "logprobs": [] })));
    between.push(("response.content_part.done", json!({ "content_index": 0, "part": part(text) })));
    Entry {
        added: whole("in_progress", json!([])),
        between,
        text: Some(text_at),
        done: whole("completed", json!([part(text)])),
    }
}

fn text_delta(piece: &str) -> (&'static str, Value) {
    ("response.output_text.delta", json!({ "content_index": 0, "delta": piece, "logprobs": [] }))
}

fn function_call(call: &Call) -> Entry {
    let arguments = call.input.as_text();
    let whole = |status: &str, arguments: &str| {
        let mut item = json!({
            "id": format!("fc_{}", call.id), "type": "function_call", "status": status, "call_id": call.id,
            "name": call.name, "arguments": arguments,
        });
        if let Some(namespace) = &call.namespace {
            item["namespace"] = json!(namespace);
        }
        item
    };
    let mut between: Vec<_> = pieces(&arguments)
        .iter()
        .map(|piece| ("response.function_call_arguments.delta", json!({ "delta": piece })))
        .collect();
    between.push((
        "response.function_call_arguments.done",
        json!({ "name": call.name, "arguments": arguments.as_str() }),
    ));
    Entry { added: whole("in_progress", ""), between, text: None, done: whole("completed", &arguments) }
}

fn custom_call(call: &Call, input: &str) -> Entry {
    let whole = |status: &str, input: &str| {
        json!({
            "id": format!("ctc_{}", call.id), "type": "custom_tool_call", "status": status, "call_id": call.id,
            "name": call.name, "input": input,
        })
    };
    let mut between: Vec<_> = pieces(input)
        .iter()
        .map(|piece| ("response.custom_tool_call_input.delta", json!({ "delta": piece })))
        .collect();
    between.push(("response.custom_tool_call_input.done", json!({ "input": input })));
    Entry { added: whole("in_progress", ""), between, text: None, done: whole("completed", input) }
}

pub fn stream(reply: &Reply) -> Frames {
    let mut events = Events::default();
    let begun = response(reply, "in_progress", Vec::new(), false);
    events.push("response.created", json!({ "response": begun }));
    events.push("response.in_progress", json!({ "response": begun }));
    let (mut filler_at, mut filler) = (events.frames.len(), Bytes::new());
    let mut output = Vec::new();
    for (index, entry) in entries(reply).into_iter().enumerate() {
        let id = entry.added["id"].clone();
        let place = |fields: &Value| {
            let mut fields = fields.clone();
            fields["item_id"] = id.clone();
            fields["output_index"] = json!(index);
            fields
        };
        events.push("response.output_item.added", json!({ "output_index": index, "item": entry.added }));
        for (at, (name, fields)) in entry.between.iter().enumerate() {
            if entry.text == Some(at) {
                filler_at = events.frames.len();
                let (name, fields) = text_delta(FILLER);
                filler = frame(name, place(&fields), events.frames.len());
            }
            events.push(name, place(fields));
        }
        events.push("response.output_item.done", json!({ "output_index": index, "item": entry.done }));
        output.push(entry.done);
    }
    events.push("response.completed", json!({ "response": response(reply, "completed", output, true) }));
    Frames { frames: events.frames, filler_at, filler }
}

#[derive(Default)]
struct Events {
    frames: Vec<Bytes>,
}

impl Events {
    fn push(&mut self, name: &str, fields: Value) {
        self.frames.push(frame(name, fields, self.frames.len()));
    }
}

fn frame(name: &str, fields: Value, number: usize) -> Bytes {
    let mut data = json!({ "type": name, "sequence_number": number });
    if let (Some(data), Value::Object(fields)) = (data.as_object_mut(), fields) {
        data.extend(fields);
    }
    event(name, &data)
}
