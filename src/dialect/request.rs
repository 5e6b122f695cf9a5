//! What may go on to a provider: `check` parses a request, keeps what is on the dialect's list, bounds what
//! costs, and says what it took away.

use std::collections::BTreeSet;
use std::io;

use serde_json::Value;

use crate::dialect::answer::{Refusal, RefusalKind};
use crate::dialect::route::{Call, MODEL_BYTES};
use crate::dialect::scrub::{Outline, OutputCap, Scrub, bad};
use crate::dialect::{anthropic, chat, gemini, json, ollama, responses};
use crate::domain::model::Dialect;

/// What an image is taken to cost, in tokens: more than any provider's usual one.
pub const IMAGE_TOKENS: u64 = 5_000;
/// What a document, sound or film in a request is taken to cost, besides a third of its bytes in base64.
pub const DOCUMENT_TOKENS: u64 = 5_000;
/// What a document is taken to cost that the provider fetches, and whose length nobody here knows.
pub const REMOTE_DOCUMENT_TOKENS: u64 = 100_000;

/// What a document of any length costs at most, in tokens, besides a third of its bytes: providers take some hundred
/// pages, or refuse what is longer than the model's context.
pub const DOCUMENT_BOUND: u64 = 300_000;
/// What a provider writes into a request of its own accord, for its tools: a few hundred tokens with each.
const TOOLS_TOKENS: u64 = 1_000;

/// What becomes of a request that holds a tool which the provider would run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnServerTool {
    /// It goes on without the tool.
    #[default]
    Remove,
    /// It does not go on.
    Refuse,
}

/// What one CLI's requests may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Of [`SERVER_TOOL_KINDS`](crate::domain::model::SERVER_TOOL_KINDS), those that the provider may run.
    pub server_tools: Vec<String>,
    pub on_server_tool: OnServerTool,
    /// Whether a request may name what the provider then fetches or has kept: URLs, file ids, conversations.
    pub remote_references: bool,
    /// Tokens that one call may produce.
    pub max_output_tokens: u64,
    /// Tokens that one call may produce where it does not say.
    pub default_output_tokens: u64,
}

/// A request that may go on.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The model that was asked for.
    pub model: String,
    pub stream: bool,
    /// What to send. `set_model` comes first.
    pub body: Value,
    /// Tokens of input as they usually are, rounded up: a third of the request's bytes, and the constants above for
    /// what is no text.
    pub input_estimate: u64,
    /// Tokens of input that it cannot be more than: a token has at least one byte of text.
    pub input_bound: u64,
    /// Kinds of tools that the provider may run for it.
    pub server_tools: BTreeSet<&'static str>,
    /// The most tokens that this call can produce; written into the body.
    pub output_limit: u64,
    /// What was taken away or made smaller, in words.
    pub removed: Vec<String>,
}

/// Checks the request of a call. `Generate` and `CountTokens` have one, and Ollama's `Show`.
///
/// # Errors
/// A refusal in words that the CLI can show.
pub fn check(dialect: Dialect, call: &Call, body: &[u8], rules: &Rules) -> Result<Checked, Refusal> {
    let (counting, hint, in_path) = match call {
        Call::Generate { stream_hint, model_in_path } => (false, *stream_hint, model_in_path.as_deref()),
        Call::CountTokens { model_in_path } => (true, None, model_in_path.as_deref()),
        Call::Show => (true, None, None),
        Call::Models | Call::Version | Call::Hello => {
            return Err(Refusal::new(RefusalKind::NotFound, "this call has no request"));
        }
    };
    let mut map = json::parse(body)?;
    let model = match in_path {
        Some(model) => model.to_owned(),
        None if dialect == Dialect::Ollama && !map.contains_key("model") => model_in(map.get("name"))?,
        None => model_in(map.get("model"))?,
    };
    let cap = OutputCap { most: rules.max_output_tokens, default: rules.default_output_tokens };
    let refuse = rules.on_server_tool == OnServerTool::Refuse;
    let mut scrub = Scrub::new(&rules.server_tools, refuse, rules.remote_references, cap);
    let outline = match (dialect, call) {
        (Dialect::Ollama, Call::Show) => {
            ollama::check_show(&mut map, &mut scrub);
            Outline { stream: false, output_limit: 0 }
        }
        (_, Call::Show) => return Err(bad("this dialect has no such call")),
        (Dialect::Anthropic, _) => anthropic::check(&mut map, counting, &mut scrub)?,
        (Dialect::Gemini, _) => gemini::check(&mut map, counting, hint.unwrap_or(false), &mut scrub)?,
        (_, Call::CountTokens { .. }) => return Err(bad("this dialect has no such call")),
        (Dialect::Responses, _) => responses::check(&mut map, &mut scrub)?,
        (Dialect::Chat, _) => chat::check(&mut map, &mut scrub)?,
        (Dialect::Ollama, _) => ollama::check(&mut map, &mut scrub)?,
    };
    let body = Value::Object(map);
    let bytes = length(&body);
    Ok(Checked {
        model,
        stream: outline.stream,
        input_estimate: estimate(bytes, &scrub),
        input_bound: bound(bytes, &body, &scrub),
        server_tools: scrub.allowed_tools,
        output_limit: outline.output_limit,
        removed: scrub.removed,
        body,
    })
}

impl Checked {
    /// Puts the model into the request that it is sent to; for Gemini it is in the path
    /// (`route::upstream_path`).
    pub fn set_model(&mut self, dialect: Dialect, model: &str) {
        let Some(map) = self.body.as_object_mut() else { return };
        match dialect {
            Dialect::Gemini => {
                if let Some(inner) = map.get_mut("generateContentRequest").and_then(Value::as_object_mut) {
                    inner.insert("model".to_owned(), format!("models/{model}").into());
                }
                return;
            }
            Dialect::Chat => chat::name_limit_for(map, model),
            _ => {}
        }
        map.insert("model".to_owned(), model.into());
    }
}

fn model_in(value: Option<&Value>) -> Result<String, Refusal> {
    match value {
        Some(Value::String(model))
            if !model.is_empty()
                && model.len() <= MODEL_BYTES
                && !model.chars().any(|c| c.is_control() || c.is_whitespace()) =>
        {
            Ok(model.clone())
        }
        Some(Value::String(_)) => Err(bad("model is not the name of one")),
        _ => Err(bad("the request names no model")),
    }
}

/// For most texts: a token is seldom shorter than three bytes, and all of JSON's own signs are counted. Rows of digits,
/// random letters and some scripts are more: see [`bound`].
fn estimate(bytes: u64, scrub: &Scrub<'_>) -> u64 {
    let text = bytes.saturating_sub(scrub.image_bytes).div_ceil(3);
    text + scrub.images * IMAGE_TOKENS
        + scrub.documents * DOCUMENT_TOKENS
        + scrub.remote_documents * REMOTE_DOCUMENT_TOKENS
}

/// For every text: no tokenizer makes more tokens than there are bytes, and JSON has no fewer than what it says.
/// Pictures and documents are bounded by what providers take.
fn bound(bytes: u64, body: &Value, scrub: &Scrub<'_>) -> u64 {
    let text = bytes.saturating_sub(scrub.image_bytes).saturating_sub(scrub.document_bytes);
    let tools = if body.get("tools").is_some() { TOOLS_TOKENS } else { 0 };
    text + tools
        + scrub.images * IMAGE_TOKENS
        + (scrub.documents + scrub.remote_documents) * DOCUMENT_BOUND
        + scrub.document_bytes.div_ceil(3)
}

/// Bytes of the request as it is sent.
fn length(body: &Value) -> u64 {
    let mut bytes = Count(0);
    // Counting does not fail, and a `Value` has no keys but text.
    let _ = serde_json::to_writer(&mut bytes, body);
    bytes.0
}

struct Count(u64);

impl io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
