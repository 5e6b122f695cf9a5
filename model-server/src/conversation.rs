//! A request in no dialect: what was said so far, and which tools are offered.

use serde_json::Value;

/// Tool calls of ours carry the turn in their id, so that a request tells which turn it answers.
const CALL_ID: &str = "call_kage_";

#[derive(Debug, Default)]
pub struct Conversation {
    pub model: String,
    pub stream: bool,
    /// Whether the client wants usage in the stream (Chat Completions; always `true` elsewhere).
    pub stream_usage: bool,
    /// System text and whatever else is no turn.
    pub system: String,
    pub items: Vec<Item>,
    pub tools: Vec<Tool>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// Text of the user; text of the CLI's own too, which often goes out under that role.
    User(String),
    Assistant {
        call_id: Option<String>,
        is_call: bool,
    },
    ToolResult,
}

#[derive(Debug, Clone)]
pub struct Tool {
    pub name: String,
    /// Codex sends some tools inside a named group.
    pub namespace: Option<String>,
    pub input: ToolInput,
}

#[derive(Debug, Clone)]
pub enum ToolInput {
    /// JSON Schema of the arguments.
    Json(Value),
    /// One text, in a grammar of the tool's own.
    Text,
}

impl Conversation {
    /// The prompt: the last text of the user with a `KAGE-SCRIPT:` line, else the last text of the user.
    #[must_use]
    pub fn prompt(&self) -> Option<&str> {
        self.prompt_at().map(|(_, text, _)| text)
    }

    fn prompt_at(&self) -> Option<(usize, &str, bool)> {
        let mut last = None;
        for (index, item) in self.items.iter().enumerate().rev() {
            let Item::User(text) = item else { continue };
            if text.contains("KAGE-SCRIPT:") {
                return Some((index, text, true));
            }
            last = last.or(Some((index, text.as_str(), false)));
        }
        last
    }

    /// How many turns of the script were played.
    ///
    /// Ids of ours say so. Dialects without ids are counted: assistant turns since the prompt; where no prompt is
    /// marked, only those with tool calls (Aider shows the model examples of whole conversations, without any).
    #[must_use]
    pub fn turns_played(&self) -> usize {
        let marked = self.prompt_at().filter(|(_, _, marked)| *marked);
        let since = marked.map_or(0, |(index, _, _)| index + 1);
        let (mut counted, mut by_id, mut in_turn, mut has_call) = (0, None, false, false);
        let end = Item::ToolResult;
        for item in self.items[since..].iter().chain([&end]) {
            if let Item::Assistant { call_id, is_call } = item {
                in_turn = true;
                has_call |= is_call;
                if let Some(turn) = call_id.as_deref().and_then(turn_of) {
                    by_id = by_id.max(Some(turn + 1));
                }
            } else if in_turn {
                counted += usize::from(has_call || marked.is_some());
                (in_turn, has_call) = (false, false);
            }
        }
        by_id.unwrap_or(counted)
    }

    /// Everything that was said, for finding what a CLI tells the model about itself.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let users = self.items.iter().filter_map(|item| match item {
            Item::User(text) => Some(text.as_str()),
            _ => None,
        });
        std::iter::once(self.system.as_str()).chain(users)
    }
}

/// Id of the call `index` of the turn `turn`, both from 0.
#[must_use]
pub fn call_id(turn: usize, index: usize) -> String {
    format!("{CALL_ID}{turn}_{index}")
}

fn turn_of(id: &str) -> Option<usize> {
    let at = id.find(CALL_ID)?;
    let digits: String = id[at + CALL_ID.len()..].chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(call_id: Option<&str>, is_call: bool) -> Item {
        Item::Assistant { call_id: call_id.map(str::to_owned), is_call }
    }

    fn user(text: &str) -> Item {
        Item::User(text.to_owned())
    }

    fn played(items: Vec<Item>) -> usize {
        Conversation { items, ..Conversation::default() }.turns_played()
    }

    #[test]
    fn ids_of_ours_tell_the_turn() {
        let first = call_id(0, 0);
        let second = call_id(0, 1);
        let items = vec![
            user("do it"),
            said(Some(&first), true),
            Item::ToolResult,
            said(Some(&second), true),
            Item::ToolResult,
            user("a reminder of the CLI's own"),
        ];
        assert_eq!(played(items), 1, "two calls of one turn, told apart by the CLI");
    }

    #[test]
    fn without_ids_turns_with_calls_count() {
        let example = vec![user("example"), said(None, false), user("do it")];
        assert_eq!(played(example), 0);
        let called = vec![user("do it"), said(None, false), said(None, true), Item::ToolResult];
        assert_eq!(played(called), 1);
    }

    #[test]
    fn a_marked_prompt_starts_the_count() {
        let first = call_id(3, 0);
        let items = vec![
            user("old"),
            said(Some(&first), true),
            Item::ToolResult,
            user("KAGE-SCRIPT: []"),
            said(None, false),
        ];
        let conversation = Conversation { items, ..Conversation::default() };
        assert_eq!(conversation.turns_played(), 1);
        assert_eq!(conversation.prompt(), Some("KAGE-SCRIPT: []"));
    }
}
