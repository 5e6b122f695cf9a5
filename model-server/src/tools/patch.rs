//! The patch format of Codex's `apply_patch`.

use crate::script::Action;

/// `None` where the action changes no file.
pub fn of(action: &Action) -> Option<String> {
    let body = match action {
        Action::WriteFile { path, content } => format!("*** Add File: {path}\n{}", lines('+', content)),
        Action::EditFile { path, old, new } => {
            format!("*** Update File: {path}\n@@\n{}{}", lines('-', old), lines('+', new))
        }
        Action::ReadFile { .. } | Action::Shell { .. } | Action::Tool { .. } => return None,
    };
    Some(format!("*** Begin Patch\n{body}*** End Patch\n"))
}

fn lines(sign: char, text: &str) -> String {
    text.lines().map(|line| format!("{sign}{line}\n")).collect()
}
