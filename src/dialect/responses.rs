//! OpenAI's Responses: what a request may hold.
//! <https://platform.openai.com/docs/api-reference/responses>

use serde_json::{Map, Value, json};

use crate::dialect::answer::Refusal;
use crate::dialect::scrub::{Outline, Scrub, bad, flag, is_base64, list_in, object, only_text, shown, word};

const FIELDS: &[&str] = &[
    "context_management",
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "model",
    "parallel_tool_calls",
    "prompt_cache_key",
    "reasoning",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "truncation",
    // Looked at by name below.
    "background",
    "conversation",
    "previous_response_id",
    "prompt",
];

/// What an answer may be asked to hold besides its text.
const INCLUDES: &[&str] = &["reasoning.encrypted_content", "message.output_text.logprobs"];

/// Input items and their keys. `phase` and `namespace` are Codex's.
const ITEMS: &[(&str, &[&str])] = &[
    ("message", &["type", "id", "role", "content", "status", "phase"]),
    ("reasoning", &["type", "id", "summary", "content", "encrypted_content", "status"]),
    ("function_call", &["type", "id", "call_id", "name", "namespace", "arguments", "status"]),
    ("function_call_output", &["type", "id", "call_id", "output", "status"]),
    ("custom_tool_call", &["type", "id", "call_id", "name", "namespace", "input", "status"]),
    ("custom_tool_call_output", &["type", "id", "call_id", "name", "output", "status"]),
    ("local_shell_call", &["type", "id", "call_id", "action", "status"]),
    ("local_shell_call_output", &["type", "id", "call_id", "output", "status"]),
    ("shell_call", &["type", "id", "call_id", "action", "status"]),
    ("shell_call_output", &["type", "id", "call_id", "output", "max_output_length", "status"]),
    ("apply_patch_call", &["type", "id", "call_id", "operation", "status"]),
    ("apply_patch_call_output", &["type", "id", "call_id", "output", "status"]),
    ("tool_search_call", &["type", "id", "call_id", "arguments", "execution", "status"]),
    ("tool_search_output", &["type", "id", "call_id", "tools", "execution", "status"]),
    ("additional_tools", &["type", "id", "role", "tools"]),
    ("compaction", &["type", "id", "encrypted_content"]),
    ("compaction_summary", &["type", "id", "encrypted_content"]),
    ("compaction_trigger", &["type"]),
    ("context_compaction", &["type", "id", "encrypted_content"]),
];

/// Parts of a message or of a tool's output, and their keys.
const PARTS: &[(&str, &[&str])] = &[
    ("input_text", &["type", "text"]),
    ("output_text", &["type", "text", "annotations", "logprobs"]),
    ("text", &["type", "text"]),
    ("summary_text", &["type", "text"]),
    ("reasoning_text", &["type", "text"]),
    ("refusal", &["type", "refusal"]),
    ("input_image", &["type", "image_url", "file_id", "detail"]),
    ("input_file", &["type", "file_data", "file_id", "file_url", "filename", "detail"]),
    ("input_audio", &["type", "input_audio"]),
    ("encrypted_content", &["type", "encrypted_content"]),
];

/// Checks a request in place.
pub(crate) fn check(body: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<Outline, Refusal> {
    scrub.keep(body, FIELDS, "");
    for key in ["previous_response_id", "conversation", "prompt"] {
        scrub.reference_key(body, key)?;
    }
    only_text(body, "instructions")?;
    if flag(body, "background", false)? {
        return Err(bad("background is not possible here: nobody would count what it costs"));
    }
    body.shift_remove("background");
    if !scrub.remote_references {
        if flag(body, "store", true)? && body.contains_key("store") {
            scrub.note("store".to_owned());
        }
        body.insert("store".to_owned(), false.into());
    }
    include(body, scrub)?;
    if let Some(tools) = list_in(body, "tools")? {
        filter_tools(tools, scrub)?;
    }
    tool_choice(body, scrub);
    input(body, scrub)?;
    let output_limit = scrub.cap_output(body, "max_output_tokens")?;
    Ok(Outline { stream: flag(body, "stream", false)?, output_limit })
}

fn include(body: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    let Some(include) = list_in(body, "include")? else { return Ok(()) };
    include.retain(|wanted| {
        let wanted = wanted.as_str().unwrap_or("something that is not text");
        let keep = INCLUDES.contains(&wanted)
            || scrub.server_tools.iter().any(|tool| !tool.is_empty() && wanted.starts_with(tool.as_str()));
        if !keep {
            scrub.note(format!("include {}", shown(wanted)));
        }
        keep
    });
    Ok(())
}

fn filter_tools(tools: &mut Vec<Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    for mut tool in std::mem::take(tools) {
        if keep_tool(object(&mut tool, "a tool")?, scrub)? {
            tools.push(tool);
        }
    }
    Ok(())
}

fn keep_tool(tool: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<bool, Refusal> {
    let kind = word(tool, "type").unwrap_or_else(|| "a tool without a type".to_owned());
    let keys: &[&str] = match kind.as_str() {
        "function" => &["type", "name", "description", "parameters", "strict", "defer_loading"],
        "custom" => &["type", "name", "description", "format", "defer_loading"],
        "local_shell" | "apply_patch" => &["type"],
        // It looks through the request's own tools, and nothing else.
        "tool_search" => &["type", "execution", "description", "parameters"],
        "namespace" => &["type", "name", "description", "tools"],
        "shell" if runs_here(tool) => {
            // Said, for what stands for nothing said is the vendor's to change.
            tool.insert("environment".to_owned(), json!({ "type": "local" }));
            &["type", "environment"]
        }
        _ => return scrub.server_tool(server_kind(&kind), &kind),
    };
    scrub.keep(tool, keys, "tools");
    match list_in(tool, "tools")? {
        None => Ok(true),
        Some(inner) => {
            filter_tools(inner, scrub)?;
            Ok(!inner.is_empty())
        }
    }
}

/// The `shell` tool runs at the client where its environment is `local`, else in a container of the provider's.
/// <https://platform.openai.com/docs/guides/tools-shell>
fn runs_here(tool: &Map<String, Value>) -> bool {
    match tool.get("environment") {
        None | Some(Value::Null) => true,
        Some(environment) => {
            environment.as_object().is_some_and(|map| map.len() == 1)
                && environment.get("type").and_then(Value::as_str) == Some("local")
        }
    }
}

/// Our word for a tool that OpenAI runs.
pub(crate) fn server_kind(kind: &str) -> &str {
    match kind {
        "web_search_preview" | "web_search_2025_08_26" | "web_search_preview_2025_03_11" => "web_search",
        "code_interpreter" | "shell" => "code_execution",
        "computer" | "computer_use_preview" => "computer_use",
        kind => kind,
    }
}

/// A choice of a tool that is gone would be an error of its own.
fn tool_choice(body: &mut Map<String, Value>, scrub: &mut Scrub<'_>) {
    let no_tools = body.get("tools").and_then(Value::as_array).is_none_or(Vec::is_empty);
    let chosen = body.get("tool_choice").and_then(|choice| choice.get("type")).and_then(Value::as_str);
    let foreign = chosen.is_some_and(|kind| match kind {
        "function" | "custom" | "allowed_tools" | "apply_patch" | "shell" | "local_shell" => false,
        kind => !scrub.server_tools.iter().any(|allowed| allowed == server_kind(kind)),
    });
    let required = body.get("tool_choice").and_then(Value::as_str) == Some("required");
    if foreign || (no_tools && (required || chosen.is_some())) {
        scrub.drop_key(body, "tool_choice");
    }
    if let Some(Value::Object(choice)) = body.get_mut("tool_choice")
        && let Some(Value::Array(tools)) = choice.get_mut("tools")
    {
        tools.retain(|tool| {
            let kind = tool.get("type").and_then(Value::as_str).unwrap_or_default();
            matches!(kind, "function" | "custom" | "apply_patch" | "shell" | "local_shell" | "namespace")
                || scrub.server_tools.iter().any(|allowed| allowed == server_kind(kind))
        });
    }
}

fn input(body: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    match body.get_mut("input") {
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(items)) => {
            for mut item in std::mem::take(items) {
                if keep_item(object(&mut item, "an input item")?, scrub)? {
                    items.push(item);
                }
            }
            Ok(())
        }
        _ => Err(bad("input is neither text nor a list")),
    }
}

fn keep_item(item: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<bool, Refusal> {
    let kind = match item.get("type") {
        None | Some(Value::Null) if item.contains_key("role") => "message".to_owned(),
        Some(Value::String(kind)) => kind.clone(),
        // The API reads an object with nothing but an id as a reference.
        _ if item.contains_key("id") => "item_reference".to_owned(),
        _ => return Err(bad("an input item without a type")),
    };
    let Some((_, keys)) = ITEMS.iter().find(|(known, _)| *known == kind) else {
        return foreign_item(item, &kind, scrub);
    };
    scrub.keep(item, keys, "input");
    if let Some(tools) = list_in(item, "tools")? {
        filter_tools(tools, scrub)?;
    }
    for key in ["content", "output"] {
        if let Some(Value::Array(parts)) = item.get_mut(key) {
            // `shell_call_output` has a list of its own form: text and how it ended.
            if kind != "shell_call_output" {
                parts.iter_mut().try_for_each(|inner| part(inner, scrub))?;
            }
        } else if let Some(Value::Object(_)) = item.get(key) {
            return Err(bad(format!("the {key} of an input item is neither text nor a list")));
        }
    }
    Ok(true)
}

/// An item of a tool that the provider ran, or of a kind that is not known: it goes on only if that tool is
/// allowed.
fn foreign_item(item: &mut Map<String, Value>, kind: &str, scrub: &mut Scrub<'_>) -> Result<bool, Refusal> {
    if kind == "item_reference" {
        scrub.reference("item_reference")?;
        return Ok(true);
    }
    let tool = ["_call_output", "_call"].iter().find_map(|end| kind.strip_suffix(end)).unwrap_or(kind);
    let tool = if tool.starts_with("mcp_") { "mcp" } else { server_kind(tool) };
    let keep = scrub.server_tools.iter().any(|allowed| allowed == tool);
    if keep && tool == "computer_use" {
        return screenshot(item, scrub).map(|()| true);
    }
    if !keep {
        scrub.note(format!("input: {} item", shown(kind)));
    }
    Ok(keep)
}

fn screenshot(item: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    match item.get_mut("output") {
        Some(Value::Object(output)) => image(output, scrub),
        _ => Ok(()),
    }
}

fn part(value: &mut Value, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    let map = object(value, "a content part")?;
    let kind = word(map, "type").ok_or_else(|| bad("a content part without a type"))?;
    let Some((_, keys)) = PARTS.iter().find(|(known, _)| *known == kind) else {
        return Err(bad(format!("a content part of type {}", shown(&kind))));
    };
    scrub.keep(map, keys, "input");
    match kind.as_str() {
        "input_image" => image(map, scrub),
        "input_file" => file(map, scrub),
        "input_audio" => {
            scrub.within(false, "");
            Ok(())
        }
        _ => Ok(()),
    }
}

fn image(map: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    scrub.reference_key(map, "file_id")?;
    match map.get("image_url") {
        None | Some(Value::Null) => {
            scrub.outside(true);
            Ok(())
        }
        Some(url) => scrub.data_url(url, "image_url", true),
    }
}

fn file(map: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    scrub.reference_key(map, "file_id")?;
    scrub.reference_key(map, "file_url")?;
    match map.get("file_data") {
        None | Some(Value::Null) => {
            scrub.outside(false);
            Ok(())
        }
        // Both forms are taken: a data URL, and bare base64.
        Some(Value::String(data)) if is_base64(data) => {
            scrub.within(false, data);
            Ok(())
        }
        Some(url) => scrub.data_url(url, "file_data", false),
    }
}
