//! Anthropic's Messages: what a request may hold.
//! <https://docs.claude.com/en/api/messages>

use serde_json::{Map, Value, json};

use crate::dialect::answer::Refusal;
use crate::dialect::scrub::{Outline, Scrub, bad, flag, is_base64, list_in, object, shown, whole, word};

const FIELDS: &[&str] = &[
    "cache_control",
    "context_management",
    "max_tokens",
    "messages",
    "model",
    "output_config",
    "output_format",
    "stop_sequences",
    "stream",
    "system",
    "temperature",
    "thinking",
    "tool_choice",
    "tools",
    "top_k",
    "top_p",
    // Looked at by name below.
    "container",
    "mcp_servers",
];

/// What is neither generated nor limited when tokens are only counted.
const NOT_FOR_COUNTING: &[&str] =
    &["max_tokens", "stream", "stop_sequences", "temperature", "top_k", "top_p"];

const CLIENT_TOOL: &[&str] = &[
    "type",
    "name",
    "description",
    "input_schema",
    "cache_control",
    "strict",
    "defer_loading",
    "input_examples",
    "eager_input_streaming",
];

/// Tools whose form the model was taught, and which the client runs.
const TAUGHT_TOOL: &[&str] =
    &["type", "name", "cache_control", "strict", "defer_loading", "input_examples", "max_characters"];

/// Content blocks and their keys.
const BLOCKS: &[(&str, &[&str])] = &[
    ("text", &["type", "text", "cache_control", "citations"]),
    ("image", &["type", "source", "cache_control"]),
    ("document", &["type", "source", "title", "context", "citations", "cache_control"]),
    ("search_result", &["type", "source", "title", "content", "citations", "cache_control"]),
    ("tool_use", &["type", "id", "name", "input", "cache_control"]),
    ("tool_result", &["type", "tool_use_id", "content", "is_error", "cache_control"]),
    ("tool_reference", &["type", "tool_name", "cache_control"]),
    ("thinking", &["type", "thinking", "signature"]),
    ("redacted_thinking", &["type", "data"]),
    ("compaction", &["type", "content", "cache_control"]),
];

/// Smallest thinking budget that the API takes.
const LEAST_THINKING: u64 = 1024;

/// Checks a request in place. With `counting`, nothing is generated.
pub(crate) fn check(
    body: &mut Map<String, Value>,
    counting: bool,
    scrub: &mut Scrub<'_>,
) -> Result<Outline, Refusal> {
    scrub.keep(body, FIELDS, "");
    scrub.reference_key(body, "container")?;
    mcp_servers(body, scrub)?;
    tools(body, scrub)?;
    if let Some(system) = body.get_mut("system") {
        content(system, "system", scrub)?;
    }
    let messages = list_in(body, "messages")?.ok_or_else(|| bad("messages are missing"))?;
    for message in messages {
        let message = object(message, "a message")?;
        scrub.keep(message, &["role", "content"], "messages");
        let inner = message.get_mut("content").ok_or_else(|| bad("a message has no content"))?;
        content(inner, "messages", scrub)?;
    }
    if counting {
        for key in NOT_FOR_COUNTING {
            scrub.drop_key(body, key);
        }
        return Ok(Outline { stream: false, output_limit: 0 });
    }
    let output_limit = scrub.cap_output(body, "max_tokens")?;
    thinking(body, output_limit, scrub)?;
    Ok(Outline { stream: flag(body, "stream", false)?, output_limit })
}

/// A thinking budget has to be below the output limit, or the API refuses the request.
fn thinking(body: &mut Map<String, Value>, limit: u64, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    let Some(budget) = body.get("thinking").and_then(|thinking| thinking.get("budget_tokens")) else {
        return Ok(());
    };
    let budget = whole(budget).ok_or_else(|| bad("thinking.budget_tokens is not a whole number"))?;
    if budget < limit {
        return Ok(());
    }
    if limit > LEAST_THINKING {
        // Half for the answer.
        let budget = (limit / 2).max(LEAST_THINKING);
        scrub.note(format!("thinking.budget_tokens over {budget}"));
        body["thinking"]["budget_tokens"] = budget.into();
    } else {
        scrub.drop_key(body, "thinking");
    }
    Ok(())
}

fn mcp_servers(body: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    let none = match body.get("mcp_servers") {
        None => return Ok(()),
        Some(Value::Null) => true,
        Some(Value::Array(servers)) => servers.is_empty(),
        Some(_) => false,
    };
    if none || !scrub.server_tool("mcp", "mcp_servers")? {
        body.shift_remove("mcp_servers");
    }
    Ok(())
}

fn tools(body: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    let Some(tools) = list_in(body, "tools")? else {
        body.shift_remove("tools");
        return Ok(());
    };
    let mut kept = Vec::with_capacity(tools.len());
    for mut tool in std::mem::take(tools) {
        if keep_tool(object(&mut tool, "a tool")?, scrub)? {
            kept.push(tool);
        }
    }
    let named = |name: &str| kept.iter().any(|tool| tool.get("name").and_then(Value::as_str) == Some(name));
    let choice = body.get("tool_choice");
    let chosen = choice.and_then(|choice| choice.get("name")).and_then(Value::as_str);
    // A choice of a tool that is gone would be an error of its own.
    if kept.is_empty() || chosen.is_some_and(|name| !named(name)) {
        body.shift_remove("tool_choice");
    }
    if kept.is_empty() {
        body.shift_remove("tools");
    } else {
        body["tools"] = Value::Array(kept);
    }
    Ok(())
}

fn keep_tool(tool: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<bool, Refusal> {
    let kind = match tool.get("type") {
        None | Some(Value::Null) => "custom",
        Some(Value::String(kind)) => kind.as_str(),
        Some(_) => "a tool without a name",
    };
    if kind == "custom" {
        scrub.keep(tool, CLIENT_TOOL, "tools");
        return Ok(true);
    }
    let base = without_date(kind);
    match base {
        // `tool_search` looks through the request's own tools, and nothing else.
        "bash" | "text_editor" | "memory" | "tool_search_tool_regex" | "tool_search_tool_bm25" => {
            scrub.keep(tool, TAUGHT_TOOL, "tools");
            Ok(true)
        }
        _ => {
            let ours = match base {
                "computer" => "computer_use",
                "mcp_toolset" => "mcp",
                base => base,
            };
            let (ours, kind) = (ours.to_owned(), kind.to_owned());
            scrub.server_tool(&ours, &kind)
        }
    }
}

/// `web_search_20250305` is `web_search`.
fn without_date(kind: &str) -> &str {
    match kind.rsplit_once('_') {
        Some((base, date)) if date.len() == 8 && date.bytes().all(|b| b.is_ascii_digit()) => base,
        _ => kind,
    }
}

/// Content: text, or a list of blocks, at any place where there may be some.
fn content(value: &mut Value, place: &str, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    match value {
        Value::String(_) | Value::Null => Ok(()),
        Value::Array(blocks) => blocks.iter_mut().try_for_each(|inner| block(inner, place, scrub)),
        _ => Err(bad(format!("{place}: content is neither text nor a list"))),
    }
}

fn block(value: &mut Value, place: &str, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    let map = object(value, "a content block")?;
    let kind = word(map, "type").ok_or_else(|| bad(format!("{place}: a content block without a type")))?;
    let Some((_, keys)) = BLOCKS.iter().find(|(known, _)| *known == kind) else {
        return foreign_block(value, &kind, place, scrub);
    };
    scrub.keep(map, keys, place);
    match kind.as_str() {
        "image" => source(map, true, scrub),
        "document" => source(map, false, scrub),
        "tool_result" | "search_result" | "compaction" => {
            map.get_mut("content").map_or(Ok(()), |inner| content(inner, place, scrub))
        }
        _ => Ok(()),
    }
}

/// A block of a tool that the provider ran, or of a kind that is not known: kept if that tool is allowed, else
/// a note stands in its place, for an empty message would be an error.
fn foreign_block(value: &mut Value, kind: &str, place: &str, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    let tool = match kind {
        "server_tool_use" => value.get("name").and_then(Value::as_str).unwrap_or(kind).to_owned(),
        "mcp_tool_use" | "mcp_tool_result" => "mcp".to_owned(),
        "container_upload" => {
            scrub.reference("container_upload")?;
            return Ok(());
        }
        kind => kind.strip_suffix("_tool_result").unwrap_or(kind).to_owned(),
    };
    let tool = match tool.as_str() {
        "bash_code_execution" | "text_editor_code_execution" => "code_execution",
        "tool_search_tool_regex" | "tool_search_tool_bm25" | "tool_search" => return Ok(()),
        tool => tool,
    };
    if scrub.server_tools.iter().any(|allowed| allowed == tool) {
        return Ok(());
    }
    let what = shown(kind);
    scrub.note(format!("{place}: {what} block"));
    *value = json!({"type": "text", "text": format!("[a block of type {what} was not sent]")});
    Ok(())
}

/// Where an image or a document comes from.
fn source(map: &mut Map<String, Value>, image: bool, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    let source = map.get_mut("source").ok_or_else(|| bad("an image or document has no source"))?;
    let source = object(source, "a source")?;
    match word(source, "type").as_deref() {
        Some("base64") => {
            scrub.keep(source, &["type", "media_type", "data"], "source");
            let data = source.get("data").and_then(Value::as_str).unwrap_or_default();
            if !is_base64(data) {
                return Err(bad("a source of type base64 holds something else"));
            }
            scrub.within(image, data);
            Ok(())
        }
        Some("text") => {
            scrub.keep(source, &["type", "media_type", "data"], "source");
            Ok(())
        }
        Some("content") => {
            scrub.keep(source, &["type", "content"], "source");
            source.get_mut("content").map_or(Ok(()), |inner| content(inner, "source", scrub))
        }
        Some(kind @ ("url" | "file")) => {
            scrub.reference(&format!("a source of type {kind}"))?;
            scrub.outside(image);
            Ok(())
        }
        _ => Err(bad("a source of an unknown type")),
    }
}
