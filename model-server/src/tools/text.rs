//! Actions for a client without tools.

use crate::conversation::Conversation;
use crate::script::Action;

/// A SEARCH/REPLACE block where the client asks for such (Aider), else a plain sentence that says what cannot be done.
pub fn of(action: &Action, conversation: &Conversation) -> String {
    let blocks = conversation.texts().any(|text| text.contains("SEARCH/REPLACE"));
    match action {
        Action::WriteFile { path, content } if blocks => block(path, "", content),
        Action::EditFile { path, old, new } if blocks => block(path, old, new),
        Action::Shell { command } if blocks => format!("```bash\n{command}\n```\n"),
        Action::WriteFile { path, .. } => format!("(no tool to write {path})"),
        Action::EditFile { path, .. } => format!("(no tool to edit {path})"),
        Action::ReadFile { path } => format!("(no tool to read {path})"),
        Action::Shell { command } => format!("(no tool to run: {command})"),
        Action::Tool { name, .. } => format!("(no tool {name})"),
    }
}

fn block(path: &str, old: &str, new: &str) -> String {
    let end = |text: &str| if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{path}\n```\n<<<<<<< SEARCH\n{old}{}=======\n{new}{}>>>>>>> REPLACE\n```\n", end(old), end(new))
}
