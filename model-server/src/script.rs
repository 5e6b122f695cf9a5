//! A script: what the "model" says, turn by turn.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::fault::Fault;

/// What a script file (TOML) or a `KAGE-SCRIPT:` line (JSON, the turns alone) holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// The turns of a conversation, in order. What comes after the last one: see `repeat`.
    #[serde(rename = "turn")]
    pub turns: Vec<Turn>,
    /// After the last turn, play it again, for ever. Otherwise the conversation gets one line of text, [`DONE`].
    #[serde(default)]
    pub repeat: bool,
}

/// One answer of the model.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// Shown as the model's reasoning, in the dialects that have a form for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub call: Vec<Action>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
}

/// A tool call, named by its purpose. The CLI's own tool for it is looked up in each request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    WriteFile {
        path: String,
        content: String,
    },
    /// `old` must occur once in the file.
    EditFile {
        path: String,
        old: String,
        new: String,
    },
    ReadFile {
        path: String,
    },
    Shell {
        command: String,
    },
    /// A tool by its own name, whether the CLI offers it or not.
    Tool {
        name: String,
        #[serde(default)]
        arguments: Map<String, Value>,
    },
}

/// Tokens of one call, as the provider would count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// All input, including what was read from or written to a cache.
    #[serde(default)]
    pub input: u64,
    #[serde(default)]
    pub output: u64,
    #[serde(default)]
    pub cached_input: u64,
    #[serde(default)]
    pub cache_write: u64,
}

/// Where a turn names no usage.
pub const DEFAULT_USAGE: Usage = Usage { input: 1000, output: 50, cached_input: 0, cache_write: 0 };

/// What is said after the last turn of a script.
pub const DONE: &str = "Done.";

/// Before the turns, on a line of the prompt.
const MARKER: &str = "KAGE-SCRIPT:";

#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    #[error("the script: {0}")]
    Toml(#[from] toml::de::Error),
    #[error("the KAGE-SCRIPT line: {0}")]
    Line(#[from] serde_json::Error),
    #[error("a script needs at least one turn")]
    Empty,
}

impl Script {
    /// # Errors
    /// Malformed TOML, unknown fields, no turn.
    pub fn from_toml(text: &str) -> Result<Self, ScriptError> {
        toml::from_str::<Self>(text)?.checked()
    }

    /// The script in the first line of `prompt` that starts with `KAGE-SCRIPT:`; `None` where there is no such line.
    /// Only that line's first JSON value counts: some CLIs put text of their own right after the prompt.
    ///
    /// # Errors
    /// The line is not a list of turns.
    pub fn from_prompt(prompt: &str) -> Option<Result<Self, ScriptError>> {
        let line = prompt.lines().find_map(|line| line.trim_start().strip_prefix(MARKER))?;
        let mut values = serde_json::Deserializer::from_str(line).into_iter::<Vec<Turn>>();
        let turns = match values.next() {
            Some(turns) => turns.map_err(ScriptError::from),
            None => Err(ScriptError::Empty),
        };
        Some(turns.and_then(|turns| Self { turns, repeat: false }.checked()))
    }

    /// The line that makes [`Self::from_prompt`] find these turns.
    #[must_use]
    pub fn line(turns: &[Turn]) -> String {
        let json = serde_json::to_string(turns).unwrap_or_default();
        format!("{MARKER} {json}")
    }

    /// The turn that answers a conversation in which `index` turns were played.
    #[must_use]
    pub fn turn(&self, index: usize) -> Turn {
        let found = self.turns.get(index).or_else(|| self.turns.last().filter(|_| self.repeat));
        found.cloned().unwrap_or_else(|| Turn { text: Some(DONE.to_owned()), ..Turn::default() })
    }

    fn checked(self) -> Result<Self, ScriptError> {
        if self.turns.is_empty() { Err(ScriptError::Empty) } else { Ok(self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_from_toml() {
        let script = Script::from_toml(
            r#"
            repeat = true
            [[turn]]
            text = "hm"
            call = [{ write_file = { path = "a", content = "b" } }, { shell = { command = "ls" } }]
            usage = { input = 7, output = 2 }
            [[turn]]
            fault = "429:retry-after=2x1"
            "#,
        )
        .unwrap();
        assert_eq!(script.turns[0].call.len(), 2);
        assert_eq!(script.turns[0].usage.unwrap().input, 7);
        assert!(script.turn(9).fault.is_some(), "the last turn repeats");
        assert!(Script::from_toml("turn = []").is_err());
        assert!(Script::from_toml("[[turn]]\ntxet = \"a\"").is_err());
    }

    #[test]
    fn a_script_is_read_from_a_line_of_the_prompt() {
        let turns = [Turn { text: Some("a \"b\"\n".to_owned()), ..Turn::default() }];
        let prompt = format!("Do this.\n{} and more\nend", Script::line(&turns));
        let script = Script::from_prompt(&prompt).unwrap().unwrap();
        assert_eq!(script.turns[0].text.as_deref(), Some("a \"b\"\n"));
        assert_eq!(script.turn(1).text.as_deref(), Some(DONE));
        assert!(Script::from_prompt("no such line").is_none());
        assert!(Script::from_prompt("KAGE-SCRIPT: {}").unwrap().is_err());
        assert!(Script::from_prompt("KAGE-SCRIPT:").unwrap().is_err());
    }
}
