//! OpenAI's Chat Completions and what is compatible with it: what a request may hold.
//! <https://platform.openai.com/docs/api-reference/chat>

use serde_json::{Map, Value, json};

use crate::dialect::answer::Refusal;
use crate::dialect::responses::server_kind;
use crate::dialect::scrub::{
    Outline, Scrub, bad, flag, is_base64, list_in, object, one_answer, shown, whole, word,
};

const FIELDS: &[&str] = &[
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "modalities",
    "model",
    "n",
    "parallel_tool_calls",
    "presence_penalty",
    "prompt_cache_key",
    "reasoning_effort",
    "response_format",
    "seed",
    "stop",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "verbosity",
    // Of compatible servers: how to sample, and how much to think.
    "chat_template_kwargs",
    "enable_thinking",
    "min_p",
    "preserve_thinking",
    "reasoning",
    "repetition_penalty",
    "thinking",
    "thinking_budget",
    "top_k",
    "vl_high_resolution_images",
];

/// Of a template's variables, those that say how much to think. Some servers take a whole template of the
/// client's there, and run it.
const TEMPLATE: &[&str] = &[
    "clear_thinking",
    "enable_thinking",
    "preserve_thinking",
    "reasoning_effort",
    "thinking",
    "thinking_budget",
];

/// Fields by which a provider searches the web without a tool being named.
const SEARCHES: &[&str] = &["web_search_options", "enable_search", "search_options", "search_parameters"];

const MESSAGE: &[&str] = &[
    "role",
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "function_call",
    "refusal",
    // What a compatible server thought, sent back to it.
    "reasoning",
    "reasoning_content",
    "reasoning_details",
    "reasoning_text",
    "reasoning_opaque",
    "cache_control",
    "prefix",
    "partial",
];

/// Content parts and their keys.
const PARTS: &[(&str, &[&str])] = &[
    ("text", &["type", "text", "cache_control"]),
    ("refusal", &["type", "refusal"]),
    ("thinking", &["type", "thinking", "signature"]),
    ("image_url", &["type", "image_url", "cache_control"]),
    ("video_url", &["type", "video_url", "cache_control"]),
    ("input_audio", &["type", "input_audio", "cache_control"]),
    ("file", &["type", "file", "cache_control"]),
];

/// Checks a request in place.
pub(crate) fn check(body: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<Outline, Refusal> {
    searches(body, scrub)?;
    let known: Vec<&str> = FIELDS.iter().chain(SEARCHES).copied().collect();
    scrub.keep(body, &known, "");
    one_answer(body, "n")?;
    if flag(body, "store", false)? {
        scrub.note("store".to_owned());
        body.insert("store".to_owned(), false.into());
    }
    modalities(body)?;
    template(body, scrub)?;
    tools(body, scrub)?;
    let messages = list_in(body, "messages")?.ok_or_else(|| bad("messages are missing"))?;
    for message in messages {
        check_message(object(message, "a message")?, scrub)?;
    }
    let stream = stream(body, scrub)?;
    let limit = output_limit(body, scrub)?;
    let output_limit = with_thinking(body, limit, scrub)?;
    Ok(Outline { stream, output_limit })
}

/// Where a request may name a budget for what is thought, and where it may switch that on.
const BUDGETS: &[(&str, &str)] =
    &[("", "thinking_budget"), ("chat_template_kwargs", "thinking_budget"), ("thinking", "budget_tokens")];
const SWITCHES: &[(&str, &str)] = &[("", "enable_thinking"), ("chat_template_kwargs", "enable_thinking")];

/// The most that the answer can hold, with what is thought. Qwen's servers, and those that took over their fields, count
/// that beside the output limit: so it is bounded by a budget of its own, and both together by the operator's limit.
/// <https://www.alibabacloud.com/help/en/model-studio/deep-thinking>
fn with_thinking(body: &mut Map<String, Value>, limit: u64, scrub: &mut Scrub<'_>) -> Result<u64, Refusal> {
    let mut asked = None;
    for (place, key) in BUDGETS {
        match inner(body, place).and_then(|map| map.get(*key)) {
            None | Some(Value::Null) => {}
            Some(value) => {
                let budget = whole(value).ok_or_else(|| bad(format!("{key} is not a whole number")))?;
                asked = asked.max(Some(budget));
            }
        }
    }
    let on = |(place, key): &(&str, &str)| {
        inner(body, place).and_then(|map| map.get(*key)).and_then(Value::as_bool) == Some(true)
    };
    let switched = SWITCHES.iter().find(|switch| on(switch)).map(|(place, _)| *place);
    if asked.is_none() && switched.is_none() {
        return Ok(limit);
    }
    let most = scrub.output.most;
    let wished = asked.unwrap_or(scrub.output.default);
    // Half for the answer, where there is not enough for both.
    let answer = limit.min(most.saturating_sub(wished).max(most.div_ceil(2))).max(1);
    let budget = wished.min(most.saturating_sub(answer));
    if answer < limit {
        scrub.note(format!("an output limit over {answer}, beside what is thought"));
        let key = if body.contains_key("max_tokens") { "max_tokens" } else { "max_completion_tokens" };
        body.insert(key.to_owned(), answer.into());
    }
    if asked.is_some_and(|asked| asked > budget) {
        scrub.note(format!("a thinking budget over {budget}"));
    }
    for (place, key) in BUDGETS {
        if let Some(map) = inner_mut(body, place)
            && (map.contains_key(*key) || (asked.is_none() && switched == Some(*place)))
        {
            map.insert((*key).to_owned(), budget.into());
        }
    }
    Ok(answer.saturating_add(budget))
}

fn inner<'b>(body: &'b Map<String, Value>, place: &str) -> Option<&'b Map<String, Value>> {
    if place.is_empty() { Some(body) } else { body.get(place)?.as_object() }
}

fn inner_mut<'b>(body: &'b mut Map<String, Value>, place: &str) -> Option<&'b mut Map<String, Value>> {
    if place.is_empty() { Some(body) } else { body.get_mut(place)?.as_object_mut() }
}

/// Two names for one limit: what the client wrote is kept until the model is known (`name_limit_for`).
fn output_limit(body: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<u64, Refusal> {
    let said = |key: &str| body.get(key).is_some_and(|value| !value.is_null());
    let (older, newer) = (said("max_tokens"), said("max_completion_tokens"));
    match (older, newer) {
        (true, true) => {
            let newer = scrub.cap_output(body, "max_completion_tokens")?;
            body.shift_remove("max_tokens");
            Ok(newer)
        }
        (false, true) => {
            body.shift_remove("max_tokens");
            scrub.cap_output(body, "max_completion_tokens")
        }
        _ => {
            body.shift_remove("max_completion_tokens");
            scrub.cap_output(body, "max_tokens")
        }
    }
}

/// Gives the limit the name that the model's server heeds. OpenAI's reasoning models know the newer one only;
/// the older one is all that many other servers know, and they would pass over the newer one without a word.
/// Both at once OpenAI refuses.
pub(crate) fn name_limit_for(body: &mut Map<String, Value>, model: &str) {
    let model = model.rsplit('/').next().unwrap_or(model);
    let digit_from = |rest: Option<&str>, least: char| {
        rest.and_then(|rest| rest.chars().next()).is_some_and(|c| c.is_ascii_digit() && c >= least)
    };
    let reasons = digit_from(model.strip_prefix("gpt-"), '5') || digit_from(model.strip_prefix('o'), '1');
    let (from, to) = if reasons {
        ("max_tokens", "max_completion_tokens")
    } else {
        ("max_completion_tokens", "max_tokens")
    };
    if let Some(limit) = body.shift_remove(from) {
        body.insert(to.to_owned(), limit);
    }
}

fn searches(body: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    for key in SEARCHES {
        let asked = match body.get(*key) {
            None => continue,
            Some(Value::Null | Value::Bool(false)) => false,
            Some(_) => true,
        };
        if !asked || !scrub.server_tool("web_search", key)? {
            body.shift_remove(*key);
        }
    }
    Ok(())
}

/// Sound and pictures are not what an agent's answer is made of, and their prices are others.
fn modalities(body: &mut Map<String, Value>) -> Result<(), Refusal> {
    match list_in(body, "modalities")? {
        Some(wanted) if wanted.iter().any(|one| one.as_str() != Some("text")) => {
            Err(bad("modalities may only be text here"))
        }
        _ => Ok(()),
    }
}

fn template(body: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    match body.get_mut("chat_template_kwargs") {
        None | Some(Value::Null) => Ok(()),
        Some(variables) => {
            let variables = object(variables, "chat_template_kwargs")?;
            scrub.keep(variables, TEMPLATE, "chat_template_kwargs");
            Ok(())
        }
    }
}

/// A stream always ends with its usage.
fn stream(body: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<bool, Refusal> {
    let stream = flag(body, "stream", false)?;
    if !stream {
        body.shift_remove("stream_options");
        return Ok(false);
    }
    match body.get_mut("stream_options") {
        Some(Value::Object(options)) => {
            scrub.keep(options, &["include_usage", "include_obfuscation"], "stream_options");
            options.insert("include_usage".to_owned(), true.into());
        }
        _ => {
            body.insert("stream_options".to_owned(), json!({"include_usage": true}));
        }
    }
    Ok(true)
}

fn tools(body: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    if let Some(tools) = list_in(body, "tools")? {
        for mut tool in std::mem::take(tools) {
            if keep_tool(object(&mut tool, "a tool")?, scrub)? {
                tools.push(tool);
            }
        }
        if tools.is_empty() {
            body.shift_remove("tools");
        }
    }
    let chosen = body.get("tool_choice").and_then(|choice| choice.get("type")).and_then(Value::as_str);
    let foreign = chosen.is_some_and(|kind| {
        !matches!(kind, "function" | "custom" | "allowed_tools")
            && !scrub.server_tools.iter().any(|allowed| allowed == server_kind(kind))
    });
    if foreign || !body.contains_key("tools") {
        // A choice of a tool that is gone would be an error of its own.
        body.shift_remove("tool_choice");
    }
    Ok(())
}

fn keep_tool(tool: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<bool, Refusal> {
    let kind = word(tool, "type").unwrap_or_else(|| "a tool without a type".to_owned());
    match kind.as_str() {
        "function" => scrub.keep(tool, &["type", "function", "cache_control"], "tools"),
        "custom" => scrub.keep(tool, &["type", "custom"], "tools"),
        kind => return scrub.server_tool(server_kind(kind), kind),
    }
    Ok(true)
}

fn check_message(message: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    // The sound of an earlier answer, kept at the provider.
    scrub.reference_key(message, "audio")?;
    scrub.keep(message, MESSAGE, "messages");
    if let Some(calls) = list_in(message, "tool_calls")? {
        for call in calls {
            let call = object(call, "a tool call")?;
            let keys = ["id", "type", "function", "custom", "index", "extra_content"];
            scrub.keep(call, &keys, "tool_calls");
        }
    }
    match message.get_mut("content") {
        None | Some(Value::Null | Value::String(_)) => Ok(()),
        Some(Value::Array(parts)) => parts.iter_mut().try_for_each(|inner| part(inner, scrub)),
        Some(_) => Err(bad("content is neither text nor a list")),
    }
}

fn part(value: &mut Value, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    let map = object(value, "a content part")?;
    let kind = word(map, "type").ok_or_else(|| bad("a content part without a type"))?;
    let Some((_, keys)) = PARTS.iter().find(|(known, _)| *known == kind) else {
        return Err(bad(format!("a content part of type {}", shown(&kind))));
    };
    scrub.keep(map, keys, "messages");
    match kind.as_str() {
        "image_url" => url(map, "image_url", true, scrub),
        "video_url" => url(map, "video_url", false, scrub),
        "input_audio" => audio(map, scrub),
        "file" => file(map, scrub),
        _ => Ok(()),
    }
}

/// `{"url": …}`, or the URL alone.
fn url(map: &mut Map<String, Value>, key: &str, image: bool, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    match map.get_mut(key) {
        Some(Value::Object(inner)) => {
            scrub.keep(inner, &["url", "detail"], key);
            scrub.data_url(inner.get("url").unwrap_or(&Value::Null), key, image)
        }
        Some(plain) => scrub.data_url(plain, key, image),
        None => Err(bad(format!("a content part without its {key}"))),
    }
}

fn audio(map: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    let inner = map.get_mut("input_audio").ok_or_else(|| bad("a content part without its input_audio"))?;
    let inner = object(inner, "input_audio")?;
    scrub.keep(inner, &["data", "format"], "input_audio");
    match inner.get("data") {
        Some(Value::String(data)) if is_base64(data) => {
            scrub.within(false, data);
            Ok(())
        }
        Some(url) => scrub.data_url(url, "input_audio", false),
        None => Err(bad("input_audio without data")),
    }
}

fn file(map: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    let inner = map.get_mut("file").ok_or_else(|| bad("a content part without its file"))?;
    let inner = object(inner, "file")?;
    scrub.keep(inner, &["file_data", "file_id", "filename", "format"], "file");
    scrub.reference_key(inner, "file_id")?;
    match inner.get("file_data") {
        None | Some(Value::Null) => {
            scrub.outside(false);
            Ok(())
        }
        Some(Value::String(data)) if is_base64(data) => {
            scrub.within(false, data);
            Ok(())
        }
        Some(url) => scrub.data_url(url, "file_data", false),
    }
}
