//! What the gateway answers by itself: who is there, and which models a CLI may use. Never asked of a provider.

use serde_json::{Value, json};

use crate::dialect::route::Call;
use crate::domain::model::Dialect;

/// Ollama's version that clients look for features in.
const OLLAMA_VERSION: &str = "0.12.0";
/// A time for lists that want one: 2025-01-01.
const CREATED: u64 = 1_735_689_600;
const CREATED_TEXT: &str = "2025-01-01T00:00:00Z";

/// The answer to a call that is not forwarded.
pub(super) fn answer(dialect: Dialect, call: &Call, models: &[String]) -> Value {
    match call {
        Call::Version => json!({ "version": OLLAMA_VERSION }),
        Call::Show => json!({
            "modelfile": "", "parameters": "", "template": "", "modified_at": CREATED_TEXT,
            "details": { "format": "", "family": "", "families": [], "parameter_size": "", "quantization_level": "" },
            "model_info": {}, "capabilities": ["completion", "tools"],
        }),
        Call::Models => list(dialect, models),
        _ => json!({}),
    }
}

fn list(dialect: Dialect, models: &[String]) -> Value {
    let each = |form: fn(&String) -> Value| models.iter().map(form).collect::<Vec<_>>();
    match dialect {
        Dialect::Anthropic => json!({
            "data": each(|model| json!({ "type": "model", "id": model, "display_name": model,
                                         "created_at": CREATED_TEXT })),
            "first_id": models.first(), "last_id": models.last(), "has_more": false,
        }),
        Dialect::Responses | Dialect::Chat => json!({
            "object": "list",
            "data": each(|model| json!({ "id": model, "object": "model", "created": CREATED, "owned_by": "kage" })),
        }),
        Dialect::Gemini => json!({
            "models": each(|model| json!({
                "name": format!("models/{model}"), "displayName": model,
                "supportedGenerationMethods": ["generateContent", "countTokens"],
            })),
        }),
        Dialect::Ollama => json!({
            "models": each(|model| json!({ "name": model, "model": model, "modified_at": CREATED_TEXT, "size": 0,
                                           "digest": "", "details": {} })),
        }),
    }
}
