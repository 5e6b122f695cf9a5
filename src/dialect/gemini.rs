//! Gemini's `generateContent`: what a request may hold. The API reads each key in two ways of writing,
//! `fileData` and `file_data`; here the first is written, and both at once are refused.
//! <https://ai.google.dev/api/generate-content>

use serde_json::{Map, Value, json};

use crate::dialect::answer::Refusal;
use crate::dialect::scrub::{Outline, Scrub, bad, is_base64, list_in, object, one_answer, shown, whole};

const FIELDS: &[&str] = &[
    "contents",
    "generationConfig",
    "safetySettings",
    "systemInstruction",
    "toolConfig",
    "tools",
    // Looked at by name below.
    "cachedContent",
    "generateContentRequest",
    "model",
];

const GENERATION: &[&str] = &[
    "candidateCount",
    "frequencyPenalty",
    "logprobs",
    "maxOutputTokens",
    "mediaResolution",
    "presencePenalty",
    "responseJsonSchema",
    "responseLogprobs",
    "responseMimeType",
    "responseModalities",
    "responseSchema",
    "seed",
    "stopSequences",
    "temperature",
    "thinkingConfig",
    "topK",
    "topP",
];

const PART: &[&str] = &[
    "text",
    "thought",
    "thoughtSignature",
    "inlineData",
    "fileData",
    "functionCall",
    "functionResponse",
    "executableCode",
    "codeExecutionResult",
    "videoMetadata",
    "mediaResolution",
];

/// Keys of a tool that name something the provider runs, and our word for it.
const SERVER_TOOLS: &[(&str, &str)] = &[
    ("googleSearch", "web_search"),
    ("googleSearchRetrieval", "web_search"),
    ("enterpriseWebSearch", "web_search"),
    ("parallelAiSearch", "web_search"),
    ("urlContext", "web_fetch"),
    ("codeExecution", "code_execution"),
    ("computerUse", "computer_use"),
    ("fileSearch", "file_search"),
    ("retrieval", "file_search"),
    ("googleMaps", "maps"),
    ("mcpServers", "mcp"),
];

/// Checks a request in place. With `counting`, nothing is generated.
pub(crate) fn check(
    body: &mut Map<String, Value>,
    counting: bool,
    stream: bool,
    scrub: &mut Scrub<'_>,
) -> Result<Outline, Refusal> {
    one_spelling(body, FIELDS)?;
    scrub.keep(body, FIELDS, "");
    // The path names the model.
    body.shift_remove("model");
    scrub.reference_key(body, "cachedContent")?;
    match body.get_mut("generateContentRequest") {
        Some(inner) if counting => {
            let inner = object(inner, "generateContentRequest")?;
            if inner.contains_key("generateContentRequest") || inner.contains_key("generate_content_request")
            {
                return Err(bad("a generateContentRequest within another"));
            }
            check(inner, true, false, scrub)?;
            // The API takes the one or the other.
            let had = body.len();
            body.retain(|key, _| key == "generateContentRequest");
            if body.len() < had {
                scrub.note("contents besides generateContentRequest".to_owned());
            }
            return Ok(Outline { stream: false, output_limit: 0 });
        }
        _ => scrub.drop_key(body, "generateContentRequest"),
    }
    tools(body, scrub)?;
    tool_config(body, scrub)?;
    if let Some(system) = body.get_mut("systemInstruction") {
        content(system, scrub)?;
    }
    let contents = match body.get_mut("contents") {
        Some(Value::Array(contents)) => contents,
        _ => return Err(bad("contents are missing, or no list")),
    };
    contents.iter_mut().try_for_each(|inner| content(inner, scrub))?;
    let output_limit = generation(body, counting, scrub)?;
    Ok(Outline { stream, output_limit })
}

fn generation(body: &mut Map<String, Value>, counting: bool, scrub: &mut Scrub<'_>) -> Result<u64, Refusal> {
    if counting {
        // Only what is sent to the model is counted; a schema belongs to it.
        scrub.drop_key(body, "generationConfig");
        return Ok(0);
    }
    let config = body.entry("generationConfig").or_insert_with(|| json!({}));
    if config.is_null() {
        *config = json!({});
    }
    let config = object(config, "generationConfig")?;
    // The schema key had an underscore before it had a name.
    if let Some(schema) = config.shift_remove("_responseJsonSchema") {
        config.entry("responseJsonSchema").or_insert(schema);
    }
    one_spelling(config, GENERATION)?;
    scrub.keep(config, GENERATION, "generationConfig");
    if let Some(Value::Object(thinking)) = config.get_mut("thinkingConfig") {
        one_spelling(thinking, &["includeThoughts", "thinkingBudget", "thinkingLevel"])?;
    }
    one_answer(config, "candidateCount")?;
    text_alone(config)?;
    // What it thinks counts too: a default must not be all spent on that.
    let thinking = config.get("thinkingConfig").and_then(|thinking| thinking.get("thinkingBudget"));
    let said = config.get("maxOutputTokens").is_some_and(|limit| !limit.is_null());
    if let (false, Some(budget)) = (said, thinking.and_then(whole)) {
        let limit = scrub.output.default.saturating_add(budget).min(scrub.output.most);
        config.insert("maxOutputTokens".to_owned(), limit.into());
    }
    scrub.cap_output(config, "maxOutputTokens")
}

/// Pictures and sound cost many times what text does, and some models answer with them unless they are told not to.
fn text_alone(config: &mut Map<String, Value>) -> Result<(), Refusal> {
    let wanted = list_in(config, "responseModalities")?.map(std::mem::take).unwrap_or_default();
    if wanted.iter().any(|one| one.as_str().is_none_or(|one| !one.eq_ignore_ascii_case("text"))) {
        return Err(bad("responseModalities may only be TEXT here"));
    }
    config.insert("responseModalities".to_owned(), json!(["TEXT"]));
    Ok(())
}

fn tools(body: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    let Some(tools) = list_in(body, "tools")? else {
        body.shift_remove("tools");
        return Ok(());
    };
    for mut tool in std::mem::take(tools) {
        let map = object(&mut tool, "a tool")?;
        one_spelling(map, &["functionDeclarations"])?;
        // Written anew: to take keys out one by one moves all that follow, and a client chooses how many there are.
        for (name, value) in std::mem::take(map) {
            let keep = name == "functionDeclarations" || {
                let camel = camel_case(&name);
                let known = SERVER_TOOLS.iter().find(|(key, _)| *key == camel);
                scrub.server_tool(known.map_or(camel.as_str(), |(_, kind)| kind), &name)?
            };
            if keep {
                map.insert(name, value);
            }
        }
        if !map.is_empty() {
            tools.push(tool);
        }
    }
    if tools.is_empty() {
        body.shift_remove("tools");
    }
    Ok(())
}

fn tool_config(body: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    let Some(config) = body.get_mut("toolConfig") else { return Ok(()) };
    if config.is_null() {
        body.shift_remove("toolConfig");
        return Ok(());
    }
    let known: &[&str] = &["functionCallingConfig"];
    let config = object(config, "toolConfig")?;
    one_spelling(config, known)?;
    scrub.keep(config, known, "toolConfig");
    Ok(())
}

fn content(value: &mut Value, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    let map = match value {
        // Client libraries write it so, and the API takes it for a system instruction.
        Value::Null | Value::String(_) => return Ok(()),
        value => object(value, "a content")?,
    };
    scrub.keep(map, &["role", "parts"], "contents");
    match map.get_mut("parts") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(parts)) => parts.iter_mut().try_for_each(|inner| part(inner, scrub)),
        // The API's parser takes one message for a list of one.
        Some(one) => part(one, scrub),
    }
}

fn part(value: &mut Value, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    let map = object(value, "a part")?;
    one_spelling(map, PART)?;
    scrub.keep(map, PART, "parts");
    scrub.reference_key(map, "fileData")?;
    if map.contains_key("fileData") {
        scrub.outside(false);
    }
    inline_data(map, scrub)?;
    let Some(response) = map.get_mut("functionResponse") else { return Ok(()) };
    let response = object(response, "a functionResponse")?;
    let known: &[&str] = &["id", "name", "response", "willContinue", "scheduling", "parts"];
    one_spelling(response, known)?;
    scrub.keep(response, known, "functionResponse");
    match list_in(response, "parts")? {
        None => Ok(()),
        Some(parts) => parts.iter_mut().try_for_each(|inner| part(inner, scrub)),
    }
}

fn inline_data(map: &mut Map<String, Value>, scrub: &mut Scrub<'_>) -> Result<(), Refusal> {
    let Some(data) = map.get_mut("inlineData") else { return Ok(()) };
    let data = object(data, "inlineData")?;
    let known: &[&str] = &["mimeType", "data", "displayName"];
    one_spelling(data, known)?;
    scrub.keep(data, known, "inlineData");
    let bytes = data.get("data").and_then(Value::as_str).unwrap_or_default();
    if !is_base64(bytes) {
        return Err(bad("inlineData holds something else than base64"));
    }
    let mime = data.get("mimeType").and_then(Value::as_str).unwrap_or_default();
    scrub.within(mime.starts_with("image/"), bytes);
    Ok(())
}

/// Writes every known key as the reference does.
fn one_spelling(map: &mut Map<String, Value>, known: &[&str]) -> Result<(), Refusal> {
    let other = |key: &str| !known.contains(&key) && known.contains(&camel_case(key).as_str());
    if !map.keys().any(|key| other(key)) {
        return Ok(());
    }
    for (key, value) in std::mem::take(map) {
        let key = if other(&key) { camel_case(&key) } else { key };
        if map.contains_key(&key) {
            return Err(bad(format!("{} is written in two ways at once", shown(&key))));
        }
        map.insert(key, value);
    }
    Ok(())
}

/// `file_data` is `fileData`.
fn camel_case(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    let mut raise = false;
    for c in key.chars() {
        match c {
            '_' => raise = true,
            c if raise => {
                out.push(c.to_ascii_uppercase());
                raise = false;
            }
            c => out.push(c),
        }
    }
    out
}
