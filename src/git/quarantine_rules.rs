//! Which paths are configuration of CLIs. Names are compared as the most forgiving file system does.

use sha2::{Digest, Sha256};

use crate::git::names;

/// What the CLIs that we know obey before their first prompt, in any folder of a worktree: hooks, helpers of all kinds
/// and servers to start, endpoints to talk to. An image's manifest adds to them and takes nothing away.
pub const BUILT_IN: &[&str] = &[
    ".aider*",
    ".claude",
    ".codex",
    ".gemini",
    ".mcp.json",
    ".opencode",
    ".qwen",
    "opencode.json",
    "opencode.jsonc",
];

/// What other programs obey when somebody opens, builds, reviews or merges a result: no CLI runs it before its first
/// prompt, but a person should look at a change of it.
pub const REVIEWED: &[&str] = &[
    ".buildkite",
    ".circleci",
    ".cursor",
    ".cursorrules",
    ".devcontainer",
    ".devcontainer.json",
    ".envrc",
    ".gitattributes",
    ".githooks",
    ".github/actions",
    ".github/workflows",
    ".gitlab-ci.yml",
    ".gitmodules",
    ".husky",
    ".idea",
    ".npmrc",
    ".pre-commit-config.yaml",
    ".travis.yml",
    ".vscode",
    ".yarnrc*",
    "agents.md",
    "azure-pipelines.yml",
    "claude.md",
    "codeowners",
    "compose.y*",
    "docker-compose*",
    "dockerfile*",
    "gemini.md",
    "jenkinsfile",
    "lefthook.yml",
    "package.json",
    "qwen.md",
];

/// Patterns for the ends of paths.
#[derive(Clone, Debug)]
pub struct Rules {
    patterns: Vec<Vec<Name>>,
    key: String,
}

#[derive(Clone, Debug)]
struct Name {
    folded: Vec<u8>,
    /// Any end will do.
    open: bool,
}

/// How a path fits a pattern.
#[derive(Clone, Copy, Debug, Eq, PartialEq, PartialOrd, Ord)]
pub(crate) enum Match {
    /// It may be a folder on the way to such a path.
    Beginning,
    Whole,
}

impl Rules {
    /// The built-in patterns and `more`. A pattern is a name, or a few with slashes between them; the last may end
    /// with `*`. Its form was checked where it was read.
    pub fn new<S: AsRef<str>>(more: impl IntoIterator<Item = S>) -> Rules {
        let more = more.into_iter().map(|pattern| pattern.as_ref().to_owned());
        Rules::of(BUILT_IN.iter().map(|&pattern| pattern.to_owned()).chain(more).collect())
    }

    /// For what is worth a look in a result.
    pub fn reviewed() -> Rules {
        Rules::of(REVIEWED.iter().map(|&pattern| pattern.to_owned()).collect())
    }

    fn of(mut all: Vec<String>) -> Rules {
        all.sort_unstable();
        all.dedup();
        let patterns = all
            .iter()
            .map(|pattern| pattern.split('/').filter(|name| !name.is_empty()).map(Name::new).collect());
        Rules {
            key: hex::encode(&Sha256::digest(all.join("\0"))[..16]),
            patterns: patterns.filter(|names: &Vec<Name>| !names.is_empty()).collect(),
        }
    }

    /// Other rules have another key.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn fold(&self, name: &[u8]) -> Vec<u8> {
        fold(name)
    }

    /// How the path, of folded names, fits: the best of all patterns.
    pub(crate) fn matches(&self, path: &[Vec<u8>]) -> Option<Match> {
        let fits = |names: &[Name]| {
            path.len()
                .checked_sub(names.len())
                .is_some_and(|start| names.iter().zip(&path[start..]).all(|(name, part)| name.fits(part)))
        };
        self.patterns
            .iter()
            .filter_map(|names| match names.len() {
                _ if fits(names) => Some(Match::Whole),
                length => (1..length).any(|end| fits(&names[..end])).then_some(Match::Beginning),
            })
            .max()
    }

    /// Whether `path` is a quarantined one, or below one.
    pub fn cover(&self, path: &[u8]) -> bool {
        let mut above = Vec::new();
        path.split(|&byte| byte == b'/').any(|name| {
            above.push(fold(name));
            self.matches(&above) == Some(Match::Whole)
        })
    }
}

impl Name {
    fn new(text: &str) -> Name {
        let (text, open) = text.strip_suffix('*').map_or((text, false), |text| (text, true));
        Name { folded: fold(text.as_bytes()), open }
    }

    fn fits(&self, folded: &[u8]) -> bool {
        if self.open { folded.starts_with(&self.folded) } else { folded == self.folded }
    }
}

/// What names have in common that a file system without case, HFS+ or NTFS takes for one.
pub(crate) fn fold(name: &[u8]) -> Vec<u8> {
    if name.is_ascii() {
        return names::ntfs_name(name).to_ascii_lowercase();
    }
    let name = names::without_hfs_ignorables(name);
    let name = names::ntfs_name(&name);
    match std::str::from_utf8(name) {
        // There and back, for letters that have a common form in one direction only.
        Ok(text) => {
            let upper = text.chars().flat_map(char::to_uppercase).collect::<String>();
            upper.chars().flat_map(char::to_lowercase).collect::<String>().into_bytes()
        }
        Err(_) => name.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_name_is_covered_wherever_it_stands() {
        let rules = Rules::new([".cursor/mcp.json", "bunfig.toml"]);
        for path in [
            ".claude",
            ".claude/settings.json",
            "packages/x/.mcp.json",
            ".MCP.json",
            ".Claude/x",
            "a/OPENCODE.JSONC",
            ".aider.conf.yml",
            ".aiderignore",
            ".Aider",
            ".claude.",
            ".codex ",
            ".gemini::$INDEX_ALLOCATION/settings.json",
            ".q\u{200c}wen",
            "opencode.j\u{17f}on",
            ".\u{212a}laude/../.codex",
            ".cursor/mcp.json",
            "deep/.CURSOR/mcp.json/x",
            "bunfig.toml",
        ] {
            assert!(rules.cover(path.as_bytes()), "{path}");
        }
        for path in [
            "claude",
            ".claude2",
            "x.mcp.json",
            "mcp.json",
            ".cursor",
            ".cursor/rules",
            "opencode.json5",
            "aider",
            "",
        ] {
            assert!(!rules.cover(path.as_bytes()), "{path}");
        }
        assert!(!Rules::new(["x"]).cover(b".cursor/mcp.json"));
    }

    #[test]
    fn the_way_to_a_pattern_is_known() {
        let rules = Rules::new([".cursor/mcp.json"]);
        let path = |path: &str| path.split('/').map(|name| fold(name.as_bytes())).collect::<Vec<_>>();
        assert_eq!(rules.matches(&path("a/.cursor")), Some(Match::Beginning));
        assert_eq!(rules.matches(&path("a/.cursor/mcp.json")), Some(Match::Whole));
        assert_eq!(rules.matches(&path("a/cursor")), None);
    }
}
