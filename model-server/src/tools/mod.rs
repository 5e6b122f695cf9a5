//! From a purpose to the tool that this CLI offers for it, with arguments that its schema takes.
//!
//! Known names first (those of the CLIs in `images/`), then any tool whose schema looks right, then the shell, then
//! text: a client without tools that asks for SEARCH/REPLACE blocks (Aider) gets one.

mod arguments;
mod known;
mod patch;
mod text;
mod workspace;

use crate::conversation::{Conversation, Tool, ToolInput};
use crate::reply::CallInput;
use crate::script::Action;

/// How an action goes out.
#[derive(Debug)]
pub enum Chosen {
    Call { name: String, namespace: Option<String>, input: CallInput },
    Text(String),
}

/// The best that `conversation` allows for `action`.
#[must_use]
pub fn choose(action: &Action, conversation: &Conversation) -> Chosen {
    if let Action::Tool { name, arguments } = action {
        let offered = conversation.tools.iter().find(|tool| tool.name == *name);
        let namespace = offered.and_then(|tool| tool.namespace.clone());
        return Chosen::Call { name: name.clone(), namespace, input: CallInput::Json(arguments.clone()) };
    }
    let tools = &conversation.tools;
    let wanted = known::wanted(action);
    if let Some(tool) = known::find(tools, &wanted) {
        return call(tool, arguments::fill(tool, &wanted, &workspace::find(conversation)));
    }
    if let Some(patch) = patch::of(action)
        && let Some(tool) = tools.iter().find(|tool| tool.name == "apply_patch")
    {
        let input = match &tool.input {
            ToolInput::Text => CallInput::Text(patch),
            ToolInput::Json(_) => arguments::fill(tool, &known::patch(&patch), ""),
        };
        return call(tool, input);
    }
    let line = known::shell_line(action);
    let shell = Action::Shell { command: line };
    let wanted = known::wanted(&shell);
    if let Some(tool) = known::find(tools, &wanted) {
        return call(tool, arguments::fill(tool, &wanted, &workspace::find(conversation)));
    }
    Chosen::Text(text::of(action, conversation))
}

fn call(tool: &Tool, input: CallInput) -> Chosen {
    Chosen::Call { name: tool.name.clone(), namespace: tool.namespace.clone(), input }
}
