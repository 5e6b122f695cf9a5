//! What one output of a manifest's filter says.
//!
//! ```text
//! {"kind": "progress" | "assistant" | "warning" | "error", "message": "…"}
//! {"kind": "tool_call", "name": "Bash", "message": "ls"}
//! {"kind": "tool_result", "name": "Bash", "message": "…", "ok": true}      (name and ok: if known)
//! {"kind": "usage", "input_tokens": 1, "output_tokens": 2, "cost_usd": 0.03}
//! {"kind": "final", "ok": true, "message": "…"}                           (message: if there is one)
//! ```

use jaq_json::Val;
use jaq_std::ValT as _;

/// Longer messages are cut, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Longer messages of a tool are cut, in bytes: the log has them whole.
pub const MAX_TOOL_MESSAGE: usize = 4 * 1024;
/// Longer names of tools are cut, in bytes.
pub const MAX_TOOL_NAME: usize = 200;

#[derive(Debug, Clone, PartialEq)]
pub enum MappedEvent {
    Progress(String),
    /// What the model said.
    Assistant(String),
    ToolCall {
        name: String,
        message: String,
    },
    ToolResult {
        name: Option<String>,
        message: String,
        ok: Option<bool>,
    },
    Warning(String),
    Error(String),
    Usage(Usage),
    Final(Final),
}

/// What a CLI says that it has used. Only a claim: the gateway counts for itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    pub input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub cost_usd: Option<f64>,
}

/// A CLI's last word: that it has done its work, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Final {
    pub ok: bool,
    pub message: Option<String>,
}

/// Reads an output; `None` if it is no event.
pub fn event(output: &Val) -> Option<MappedEvent> {
    let Val::Obj(fields) = output else { return None };
    let field = |name: &str| fields.get(&Val::from(name.to_owned()));
    let text = |name: &str, most| field(name)?.as_utf8_bytes().map(|bytes| cut(bytes, most));
    let truth = |name: &str| match field(name) {
        Some(Val::Bool(is)) => Some(*is),
        _ => None,
    };
    let message = || text("message", MAX_MESSAGE);
    Some(match field("kind")?.as_utf8_bytes()? {
        b"progress" => MappedEvent::Progress(message()?),
        b"assistant" => MappedEvent::Assistant(message()?),
        b"warning" => MappedEvent::Warning(message()?),
        b"error" => MappedEvent::Error(message()?),
        b"tool_call" => MappedEvent::ToolCall {
            name: text("name", MAX_TOOL_NAME)?,
            message: text("message", MAX_TOOL_MESSAGE)?,
        },
        b"tool_result" => MappedEvent::ToolResult {
            name: text("name", MAX_TOOL_NAME),
            message: text("message", MAX_TOOL_MESSAGE)?,
            ok: truth("ok"),
        },
        b"final" => MappedEvent::Final(Final { ok: truth("ok")?, message: message() }),
        b"usage" => {
            let tokens = |name| field(name).and_then(Val::as_isize).and_then(|n| u64::try_from(n).ok());
            let cost =
                field("cost_usd").and_then(Val::as_f64).filter(|cost| cost.is_finite() && *cost >= 0.0);
            let usage = Usage {
                input_tokens: tokens("input_tokens"),
                output_tokens: tokens("output_tokens"),
                cost_usd: cost,
            };
            return (usage != Usage::default()).then_some(MappedEvent::Usage(usage));
        }
        _ => return None,
    })
}

/// Text that can be stored: UTF-8, without NUL (a database's text has none), cut at a character.
fn cut(bytes: &[u8], most: usize) -> String {
    let mut text = String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}");
    if text.len() > most {
        let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::mapping::Mapping;

    fn mapped(object: &serde_json::Value) -> Option<MappedEvent> {
        let mapping = Mapping::compile("fromjson").expect("compiles");
        mapping.map_line(object.to_string().as_bytes()).events.pop()
    }

    #[test]
    fn reads_what_agents_do() {
        let call = serde_json::json!({"kind": "tool_call", "name": "Bash", "message": "ls\u{0}"});
        let (name, message) = ("Bash".to_owned(), "ls\u{fffd}".to_owned());
        assert_eq!(mapped(&call), Some(MappedEvent::ToolCall { name, message }));
        let result = serde_json::json!({"kind": "tool_result", "message": "x".repeat(9000), "ok": false});
        let Some(MappedEvent::ToolResult { name: None, message, ok: Some(false) }) = mapped(&result) else {
            panic!("a result")
        };
        assert_eq!(message.len(), MAX_TOOL_MESSAGE + '…'.len_utf8());
        let said = serde_json::json!({"kind": "assistant", "message": "hello"});
        assert_eq!(mapped(&said), Some(MappedEvent::Assistant("hello".to_owned())));
    }

    #[test]
    fn a_final_event_says_whether_it_is_good() {
        let last = |ok: serde_json::Value| mapped(&serde_json::json!({"kind": "final", "ok": ok}));
        assert_eq!(last(true.into()), Some(MappedEvent::Final(Final { ok: true, message: None })));
        assert_eq!(last(false.into()), Some(MappedEvent::Final(Final { ok: false, message: None })));
        assert_eq!(last("true".into()), None);
        assert_eq!(last(serde_json::Value::Null), None);
    }
}
