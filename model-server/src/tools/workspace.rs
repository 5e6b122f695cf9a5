//! Where the client works: it tells the model, in words of its own.

use crate::conversation::Conversation;

/// Where nothing is said.
pub const DEFAULT: &str = "/workspace";

/// What stands before the folder, by CLI.
const BEFORE: &[&str] = &[
    "<cwd>",
    "orking directory: ",
    "working in the directory: ",
    "current working directory is ",
    "current working directory: ",
];

pub fn find(conversation: &Conversation) -> String {
    let found = conversation.texts().find_map(|text| {
        BEFORE.iter().find_map(|before| {
            let rest = &text[text.find(before)? + before.len()..];
            let folder = rest.trim_start_matches(['`', '"', '\'']);
            let end = folder.find(|c: char| c.is_whitespace() || "<`\"'".contains(c)).unwrap_or(folder.len());
            let folder = folder[..end].trim_end_matches(['.', ',']);
            folder.starts_with('/').then(|| folder.to_owned())
        })
    });
    found.unwrap_or_else(|| DEFAULT.to_owned())
}
