//! A client a dialect: it offers tools as the real CLI does, reads the stream, and answers tool calls.

use serde_json::{Value, json};

use crate::support::{TestServer, events};

/// What the model said in one turn.
#[derive(Debug, Default, PartialEq)]
pub struct Said {
    pub text: String,
    /// Tool and arguments; a custom tool's input is a JSON string.
    pub calls: Vec<(String, Value)>,
    /// Input, output and cached tokens.
    pub usage: Option<(u64, u64, u64)>,
}

#[derive(Debug, Clone, Copy)]
pub enum Speaks {
    Anthropic,
    Responses,
    Chat,
    Gemini,
    Ollama,
}

pub const ALL: [Speaks; 5] =
    [Speaks::Anthropic, Speaks::Responses, Speaks::Chat, Speaks::Gemini, Speaks::Ollama];

/// Conversations end by themselves; one that does not is a fault.
const MOST_TURNS: usize = 20;

pub async fn converse(server: &TestServer, speaks: Speaks, prompt: &str) -> Vec<Said> {
    let mut history = vec![speaks.user(prompt)];
    let mut all = Vec::new();
    for _ in 0..MOST_TURNS {
        let said = speaks.ask(server, &history).await;
        let last = said.calls.is_empty();
        history.extend(speaks.answered(&said, all.len()));
        all.push(said);
        if last {
            return all;
        }
    }
    panic!("no end: {all:?}");
}

fn schema(names: &[&str]) -> Value {
    let properties: serde_json::Map<_, _> =
        names.iter().map(|name| ((*name).to_owned(), json!({ "type": "string" }))).collect();
    json!({ "type": "object", "properties": properties, "required": names })
}

impl Speaks {
    pub async fn ask(self, server: &TestServer, history: &[Value]) -> Said {
        let (path, body) = self.request(history);
        let response = server.post(path, &body).await;
        assert_eq!(response.status(), 200);
        self.read(&response.text().await.unwrap())
    }

    pub fn request(self, history: &[Value]) -> (&'static str, Value) {
        match self {
            Self::Anthropic => {
                let tool = |name, names| json!({ "name": name, "input_schema": schema(names) });
                let tools = json!([
                    tool("Bash", &["command", "description"]),
                    tool("Write", &["file_path", "content"]),
                    { "type": "web_search_20250305", "name": "web_search" },
                ]);
                (
                    "/v1/messages?beta=true",
                    json!({ "model": "m", "stream": true, "messages": history, "tools": tools }),
                )
            }
            Self::Responses => {
                let exec =
                    json!({ "type": "function", "name": "exec_command", "parameters": schema(&["cmd"]) });
                let tools =
                    json!([exec, { "type": "custom", "name": "apply_patch" }, { "type": "web_search" }]);
                ("/v1/responses", json!({ "model": "m", "stream": true, "input": history, "tools": tools }))
            }
            Self::Chat | Self::Ollama => {
                let tool = |name, names| json!({ "type": "function", "function": { "name": name, "parameters": schema(names) } });
                let tools =
                    [tool("bash", &["command", "description"]), tool("write", &["filePath", "content"])];
                let mut body = json!({ "model": "m", "messages": history, "tools": tools });
                if matches!(self, Self::Ollama) {
                    return ("/api/chat", body);
                }
                body["stream"] = json!(true);
                body["stream_options"] = json!({ "include_usage": true });
                ("/v1/chat/completions", body)
            }
            Self::Gemini => {
                let tool = |name, names| json!({ "name": name, "parametersJsonSchema": schema(names) });
                let tools =
                    [tool("run_shell_command", &["command"]), tool("write_file", &["file_path", "content"])];
                let body = json!({ "contents": history, "tools": [{ "functionDeclarations": tools }] });
                ("/v1beta/models/m:streamGenerateContent?alt=sse", body)
            }
        }
    }

    pub fn user(self, text: &str) -> Value {
        match self {
            Self::Gemini => json!({ "role": "user", "parts": [{ "text": text }] }),
            Self::Responses => {
                json!({ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": text }] })
            }
            _ => json!({ "role": "user", "content": text }),
        }
    }

    /// The turn as history, with a result for each call. Ids are given where the dialect has them.
    fn answered(self, said: &Said, turn: usize) -> Vec<Value> {
        let id = |index: usize| format!("call_kage_{turn}_{index}");
        let calls = || said.calls.iter().enumerate();
        match self {
            Self::Anthropic => {
                let mut content = vec![json!({ "type": "text", "text": said.text })];
                content.extend(calls().map(
                    |(i, (name, input))| json!({ "type": "tool_use", "id": id(i), "name": name, "input": input }),
                ));
                let results: Vec<_> = calls()
                    .map(|(i, _)| json!({ "type": "tool_result", "tool_use_id": id(i), "content": "ok" }))
                    .chain([json!({ "type": "text", "text": "<system-reminder>hm</system-reminder>" })])
                    .collect();
                vec![
                    json!({ "role": "assistant", "content": content }),
                    json!({ "role": "user", "content": results }),
                ]
            }
            // Call, result, call, result: as Codex orders them.
            Self::Responses => calls()
                .flat_map(|(i, (name, input))| {
                    [
                        json!({ "type": "function_call", "call_id": id(i), "name": name, "arguments": input.to_string() }),
                        json!({ "type": "function_call_output", "call_id": id(i), "output": "ok" }),
                    ]
                })
                .collect(),
            Self::Chat => {
                let list: Vec<_> = calls().map(|(i, (name, input))| {
                    json!({ "id": id(i), "type": "function", "function": { "name": name, "arguments": input.to_string() } })
                }).collect();
                let mut all = vec![json!({ "role": "assistant", "content": said.text, "tool_calls": list })];
                all.extend(calls().map(|(i, _)| json!({ "role": "tool", "tool_call_id": id(i), "content": "ok" })));
                all
            }
            Self::Ollama => {
                let list: Vec<_> = calls()
                    .map(|(_, (name, input))| json!({ "function": { "name": name, "arguments": input } }))
                    .collect();
                let mut all = vec![json!({ "role": "assistant", "content": said.text, "tool_calls": list })];
                all.extend(calls().map(|_| json!({ "role": "tool", "content": "ok" })));
                all
            }
            Self::Gemini => {
                let parts: Vec<_> = calls()
                    .map(|(_, (name, input))| json!({ "functionCall": { "name": name, "args": input } }))
                    .collect();
                let results: Vec<_> = calls()
                    .map(|(_, (name, _))| json!({ "functionResponse": { "name": name, "response": {} } }))
                    .collect();
                vec![json!({ "role": "model", "parts": parts }), json!({ "role": "user", "parts": results })]
            }
        }
    }

    fn read(self, text: &str) -> Said {
        match self {
            Self::Anthropic => anthropic(&events(text)),
            Self::Responses => responses(&events(text)),
            Self::Chat => chat(&events(text)),
            Self::Gemini => gemini(&events(text)),
            Self::Ollama => ollama(text),
        }
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn anthropic(events: &[Value]) -> Said {
    let mut said = Said::default();
    let mut arguments = String::new();
    assert_eq!(events.first().unwrap()["type"], "message_start");
    assert_eq!(events.last().unwrap()["type"], "message_stop");
    for event in events {
        match event["type"].as_str().unwrap() {
            "content_block_start" if event["content_block"]["type"] == "tool_use" => {
                said.calls.push((string(&event["content_block"]["name"]), Value::Null));
                arguments.clear();
            }
            "content_block_delta" => {
                said.text += &string(&event["delta"]["text"]);
                arguments += &string(&event["delta"]["partial_json"]);
            }
            "content_block_stop" if !arguments.is_empty() => {
                said.calls.last_mut().unwrap().1 = serde_json::from_str(&arguments).unwrap();
                arguments.clear();
            }
            "message_delta" => {
                let usage = &event["usage"];
                let cached = number(&usage["cache_read_input_tokens"]);
                said.usage =
                    Some((number(&usage["input_tokens"]) + cached, number(&usage["output_tokens"]), cached));
            }
            _ => {}
        }
    }
    said
}

fn responses(events: &[Value]) -> Said {
    let mut said = Said::default();
    let mut deltas = String::new();
    let names: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(names[..2], ["response.created", "response.in_progress"]);
    assert_eq!(*names.last().unwrap(), "response.completed");
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], index);
        match event["type"].as_str().unwrap() {
            "response.output_text.delta" => said.text += &string(&event["delta"]),
            name if name.ends_with(".delta") => deltas += &string(&event["delta"]),
            "response.output_item.done" => {
                let item = &event["item"];
                let input = match item["type"].as_str().unwrap() {
                    "function_call" => serde_json::from_str(item["arguments"].as_str().unwrap()).unwrap(),
                    "custom_tool_call" => item["input"].clone(),
                    _ => continue,
                };
                let done = item.get("arguments").unwrap_or(&item["input"]);
                assert_eq!(deltas, done.as_str().unwrap());
                deltas.clear();
                said.calls.push((string(&item["name"]), input));
            }
            "response.completed" => {
                let usage = &event["response"]["usage"];
                let cached = number(&usage["input_tokens_details"]["cached_tokens"]);
                said.usage = Some((number(&usage["input_tokens"]), number(&usage["output_tokens"]), cached));
            }
            _ => {}
        }
    }
    said
}

fn chat(events: &[Value]) -> Said {
    let mut said = Said::default();
    let mut arguments = Vec::<String>::new();
    for event in events {
        let delta = &event["choices"][0]["delta"];
        said.text += &string(&delta["content"]);
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            if call.get("id").is_some() {
                said.calls.push((string(&call["function"]["name"]), Value::Null));
                arguments.push(String::new());
            }
            arguments[call["index"].as_u64().unwrap() as usize] += &string(&call["function"]["arguments"]);
        }
        if let Some(usage) = event.get("usage") {
            let cached = number(&usage["prompt_tokens_details"]["cached_tokens"]);
            said.usage = Some((number(&usage["prompt_tokens"]), number(&usage["completion_tokens"]), cached));
        }
    }
    for (call, text) in said.calls.iter_mut().zip(&arguments) {
        call.1 = serde_json::from_str(text).unwrap();
    }
    said
}

fn gemini(events: &[Value]) -> Said {
    let mut said = Said::default();
    for event in events {
        for part in event["candidates"][0]["content"]["parts"].as_array().unwrap() {
            said.text += &string(&part["text"]);
            if let Some(call) = part.get("functionCall") {
                said.calls.push((string(&call["name"]), call["args"].clone()));
            }
        }
        let usage = &event["usageMetadata"];
        said.usage = Some((
            number(&usage["promptTokenCount"]),
            number(&usage["candidatesTokenCount"]),
            number(&usage["cachedContentTokenCount"]),
        ));
    }
    assert_eq!(events.last().unwrap()["candidates"][0]["finishReason"], "STOP");
    said
}

fn ollama(text: &str) -> Said {
    let mut said = Said::default();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        said.text += &string(&line["message"]["content"]);
        for call in line["message"]["tool_calls"].as_array().into_iter().flatten() {
            said.calls.push((string(&call["function"]["name"]), call["function"]["arguments"].clone()));
        }
    }
    let last = lines.last().unwrap();
    assert_eq!(last["done"], true);
    said.usage = Some((number(&last["prompt_eval_count"]), number(&last["eval_count"]), 0));
    said
}
