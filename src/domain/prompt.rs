//! What a CLI that asks a model is told: the task's description and the assignment's context, in one form.
//!
//! ````text
//! <description>
//!
//! ## Context
//!
//! ```json
//! {
//!   "key": "value"
//! }
//! ```
//! ````

use serde_json::Value;

/// Most bytes of a whole prompt.
pub const MAX_BYTES: usize = 1 << 20;

/// The prompt. Without context it is the description as it is.
///
/// Nothing in the context can end its fence: within JSON no line begins with a backtick.
pub fn compose(description: &str, context: &Value) -> String {
    let empty = match context {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    if empty {
        return description.to_owned();
    }
    format!("{}\n\n## Context\n\n```json\n{context:#}\n```\n", description.trim_end_matches('\n'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn context_follows_the_description_in_a_fence() {
        assert_eq!(compose("Do it.\n", &json!({})), "Do it.\n");
        let context = json!({ "files": ["a.rs"], "note": "x\n```\ny" });
        let prompt = compose("Do it.\n", &context);
        assert!(
            prompt.starts_with("Do it.\n\n## Context\n\n```json\n{\n  \"files\": [\n    \"a.rs\"\n  ],"),
            "{prompt}"
        );
        let inside: Vec<&str> = prompt.split("```json\n").nth(1).expect("a fence").split("\n```").collect();
        assert_eq!(inside, [&format!("{context:#}"), "\n"]);
    }
}
