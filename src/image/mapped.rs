//! What one output of a manifest's filter says.
//!
//! ```text
//! {"kind": "progress" | "assistant" | "warning" | "error", "message": "…"}
//! {"kind": "tool_call", "name": "Bash", "message": "ls"}
//! {"kind": "tool_result", "name": "Bash", "message": "…", "ok": true}      (name and ok: if known)
//! {"kind": "usage", "input_tokens": 1, "output_tokens": 2, "cost_usd": 0.03}      (so far; the last one counts)
//! {"kind": "usage_step", …}                                               (as usage, of one step; they are added up)
//! {"kind": "final", "ok": true, "message": "…"}                           (message: if there is one)
//! ```

use jaq_json::Val;
use jaq_std::ValT as _;
use serde_json::{Value, json};

use crate::domain::judgement::Told;

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
    /// Of the attempt so far.
    Usage(Usage),
    /// Of one step, to be added to those before.
    StepUsage(Usage),
    Final(Final),
}

/// What an event means for how long its CLI may still run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// It has work to do.
    AtWork,
    /// It has said its last word.
    Done,
    Nothing,
}

impl MappedEvent {
    /// Takes note of what the CLI's end will be judged by.
    pub fn note(&self, told: &mut Told) -> Meaning {
        match self {
            Self::Assistant(_) | Self::ToolCall { .. } | Self::ToolResult { .. } => Meaning::AtWork,
            Self::Error(message) => {
                told.hear_error(message);
                Meaning::Nothing
            }
            Self::Final(last) => {
                told.hear_final(last.ok, last.message.as_deref());
                Meaning::Done
            }
            Self::Progress(_) | Self::Warning(_) | Self::Usage(_) | Self::StepUsage(_) => Meaning::Nothing,
        }
    }
}

impl MappedEvent {
    /// All that the CLI has worded.
    pub fn texts_mut(&mut self) -> Vec<&mut String> {
        match self {
            Self::Progress(text) | Self::Assistant(text) | Self::Warning(text) | Self::Error(text) => {
                vec![text]
            }
            Self::ToolCall { name, message } => vec![name, message],
            Self::ToolResult { name, message, .. } => name.iter_mut().chain([message]).collect(),
            Self::Final(last) => last.message.iter_mut().collect(),
            Self::Usage(_) | Self::StepUsage(_) => Vec::new(),
        }
    }

    /// In the form that [`event`] reads; what is not known is left out.
    pub fn to_json(&self) -> Value {
        let usage = |kind, usage: &Usage| {
            let Usage { input_tokens, output_tokens, cost_usd } = usage;
            json!({ "kind": kind, "input_tokens": input_tokens, "output_tokens": output_tokens, "cost_usd": cost_usd })
        };
        let mut object = match self {
            Self::Progress(message) => json!({ "kind": "progress", "message": message }),
            Self::Assistant(message) => json!({ "kind": "assistant", "message": message }),
            Self::Warning(message) => json!({ "kind": "warning", "message": message }),
            Self::Error(message) => json!({ "kind": "error", "message": message }),
            Self::ToolCall { name, message } => {
                json!({ "kind": "tool_call", "name": name, "message": message })
            }
            Self::ToolResult { name, message, ok } => {
                json!({ "kind": "tool_result", "name": name, "message": message, "ok": ok })
            }
            Self::Usage(total) => usage("usage", total),
            Self::StepUsage(step) => usage("usage_step", step),
            Self::Final(last) => json!({ "kind": "final", "ok": last.ok, "message": last.message }),
        };
        if let Value::Object(fields) = &mut object {
            fields.retain(|_, value| !value.is_null());
        }
        object
    }
}

/// What a CLI says that it has used. Only a claim: the gateway counts for itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    pub input_tokens: Option<u64>,
    pub output_tokens: Option<u64>,
    pub cost_usd: Option<f64>,
}

impl Usage {
    /// What the CLI claims in all: its last total, and the steps that it told of since.
    pub fn claimed(events: &[MappedEvent]) -> Option<Self> {
        events.iter().fold(None, |so_far, event| match event {
            MappedEvent::Usage(total) => Some(total.clone()),
            MappedEvent::StepUsage(step) => Some(so_far.unwrap_or_default().plus(step)),
            _ => so_far,
        })
    }

    fn plus(self, step: &Self) -> Self {
        let add = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or_default().saturating_add(b.unwrap_or_default())),
        };
        let cost_usd = match (self.cost_usd, step.cost_usd) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or_default() + b.unwrap_or_default()),
        };
        Self {
            input_tokens: add(self.input_tokens, step.input_tokens),
            output_tokens: add(self.output_tokens, step.output_tokens),
            cost_usd,
        }
    }
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
        kind @ (b"usage" | b"usage_step") => {
            let tokens = |name| field(name).and_then(Val::as_isize).and_then(|n| u64::try_from(n).ok());
            let cost =
                field("cost_usd").and_then(Val::as_f64).filter(|cost| cost.is_finite() && *cost >= 0.0);
            let usage = Usage {
                input_tokens: tokens("input_tokens"),
                output_tokens: tokens("output_tokens"),
                cost_usd: cost,
            };
            let event = if kind == b"usage" { MappedEvent::Usage } else { MappedEvent::StepUsage };
            return (usage != Usage::default()).then_some(event(usage));
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
    fn steps_are_added_up_and_a_total_stands_for_all_before_it() {
        let of = |kind: &str, fields: serde_json::Value| {
            let mut object = fields;
            object["kind"] = kind.into();
            mapped(&object).expect("an event")
        };
        let step =
            |input: u64| of("usage_step", serde_json::json!({"input_tokens": input, "output_tokens": 1}));
        let claimed = |events: &[MappedEvent]| {
            Usage::claimed(events).map(|usage| (usage.input_tokens, usage.output_tokens))
        };
        assert_eq!(claimed(&[]), None);
        assert_eq!(claimed(&[step(10), step(5)]), Some((Some(15), Some(2))));
        let total = of("usage", serde_json::json!({"input_tokens": 3}));
        assert_eq!(claimed(&[step(10), total, step(5)]), Some((Some(8), Some(1))));
        assert_eq!(
            claimed(&vec![step(u64::try_from(i64::MAX).expect("fits")); 3]).map(|(input, _)| input),
            Some(Some(u64::MAX))
        );
        let cost = of("usage_step", serde_json::json!({"cost_usd": 0.25}));
        let usage = Usage::claimed(&[cost.clone(), cost]).expect("claims");
        assert_eq!((usage.cost_usd, usage.input_tokens), (Some(0.5), None));
    }

    #[test]
    fn what_the_end_is_judged_by_is_noted() {
        let mut told = Told::default();
        let mut note = |object: serde_json::Value| mapped(&object).expect("an event").note(&mut told);
        assert_eq!(note(serde_json::json!({"kind": "error", "message": "bad key"})), Meaning::Nothing);
        assert_eq!(note(serde_json::json!({"kind": "assistant", "message": "hm"})), Meaning::AtWork);
        assert_eq!(note(serde_json::json!({"kind": "final", "ok": false, "message": "no"})), Meaning::Done);
        assert_eq!(told.error.as_deref(), Some("bad key"));
        let last = told.last_word.expect("a last word");
        assert_eq!((last.ok, last.message.as_deref()), (false, Some("no")));
    }

    #[test]
    fn what_is_written_is_read_as_the_same() {
        for object in [
            serde_json::json!({"kind": "progress", "message": "p"}),
            serde_json::json!({"kind": "assistant", "message": "a"}),
            serde_json::json!({"kind": "warning", "message": "w"}),
            serde_json::json!({"kind": "error", "message": "e\u{1b}[0m"}),
            serde_json::json!({"kind": "tool_call", "name": "Bash", "message": "ls"}),
            serde_json::json!({"kind": "tool_result", "message": "x"}),
            serde_json::json!({"kind": "tool_result", "name": "Bash", "message": "x", "ok": false}),
            serde_json::json!({"kind": "usage", "input_tokens": 1, "output_tokens": 2, "cost_usd": 0.5}),
            serde_json::json!({"kind": "usage_step", "output_tokens": 2}),
            serde_json::json!({"kind": "final", "ok": true}),
            serde_json::json!({"kind": "final", "ok": false, "message": "m"}),
        ] {
            assert_eq!(mapped(&object).expect("an event").to_json(), object);
        }
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
