//! `.gitignore` as git reads it, on bytes that the caller took from the worktree.

use bstr::{BStr, ByteSlice};
use gix_ignore::glob::{Pattern, pattern::Case, wildmatch};

/// Stars in one rule. Matching backtracks on each: with many, one rule and one deep path take hours.
const MAX_STARS: usize = 6;
/// Rules in one file. With [`MAX_STARS`] they bound the work for one path.
const MAX_RULES: usize = 2000;

/// The rules of the folders from the root down to where the walk stands.
#[derive(Default)]
pub(crate) struct IgnoreRules {
    folders: Vec<Folder>,
}

struct Folder {
    /// Length of the folder's path with its closing `/`; 0 for the root.
    prefix: usize,
    rules: Vec<Pattern>,
}

impl IgnoreRules {
    /// Enters the folder `path` ("" is the root), whose `.gitignore` has `content`, if any. Returns how many
    /// rules are beyond what people write and are not followed: what they name is taken in.
    pub fn enter(&mut self, path: &[u8], content: Option<&[u8]>) -> usize {
        let prefix = if path.is_empty() { 0 } else { path.len() + 1 };
        let (mut rules, mut dropped) = (Vec::new(), 0);
        if let Some(content) = content {
            for (pattern, _, _) in gix_ignore::parse(&lines_as_git_reads_them(content), false) {
                let stars = pattern.text.iter().filter(|byte| **byte == b'*').count();
                if stars <= MAX_STARS && rules.len() < MAX_RULES {
                    rules.push(pattern);
                } else {
                    dropped += 1;
                }
            }
        }
        self.folders.push(Folder { prefix, rules });
        dropped
    }

    pub fn leave(&mut self) {
        self.folders.pop();
    }

    /// Whether the entry at `path` is ignored by itself; that its folder may be is the walk's concern.
    /// The last rule that matches decides, those of deeper folders first.
    pub fn ignores(&self, path: &BStr, is_dir: bool) -> bool {
        for folder in self.folders.iter().rev() {
            let relative = path[folder.prefix..].as_bstr();
            let basename = relative.rfind_byte(b'/').map(|slash| slash + 1);
            let last = folder.rules.iter().rev().find(|rule| {
                rule.matches_repo_relative_path(
                    relative,
                    basename,
                    Some(is_dir),
                    Case::Sensitive,
                    wildmatch::Mode::NO_MATCH_SLASH_LITERAL,
                )
            });
            if let Some(rule) = last {
                return !rule.is_negative();
            }
        }
        false
    }
}

/// Git drops a carriage return also at the end of the file, reads no further than a NUL in a line, and
/// knows no byte order mark but UTF-8's. The empty line in front keeps the parser from looking for others.
fn lines_as_git_reads_them(content: &[u8]) -> Vec<u8> {
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let mut lines = Vec::with_capacity(content.len() + 2);
    for line in content.split(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        lines.push(b'\n');
        lines.extend_from_slice(line.split(|&byte| byte == 0).next().unwrap_or_default());
    }
    lines.push(b'\n');
    lines
}
