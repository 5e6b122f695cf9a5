//! `cli.toml`: how one CLI is driven. Data, checked as a whole when it is read.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::domain::judgement::Judge;
use crate::domain::model::Dialect;
use crate::domain::model_name::ModelName;
use crate::domain::name::Name;
use crate::image::error::ImageError;
use crate::image::mapping::Mapping;
use crate::image::template::Values;
use crate::sandbox::spec::check_writable;

/// The manifest's file name in an image's folder.
pub const FILE_NAME: &str = "cli.toml";

/// Most bytes of a manifest.
const MAX_BYTES: u64 = 256 * 1024;

/// The least that `max_prompt_bytes` may say.
const MIN_PROMPT_BYTES: usize = 1024;

/// Seconds that a CLI may take to exit after its final event, where the manifest does not say.
const AFTER_FINAL_SECS: u32 = 10;
const MAX_AFTER_FINAL_SECS: u32 = 600;
const MAX_QUARANTINE_NAMES: usize = 8;
const MAX_QUARANTINE_BYTES: usize = 255;

/// How one CLI is driven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub name: Name,
    #[serde(default)]
    pub description: String,
    /// Program and arguments; never a shell line.
    pub command: Vec<String>,
    pub prompt: PromptWay,
    /// Put before every prompt as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_prefix: Option<String>,
    /// Most bytes of a prompt that the CLI takes, the prefix not counted. A task with a longer one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_prompt_bytes: Option<u32>,
    /// The least OCI runtime that its runs are to have (`runsc`, `kata`); default: the operator's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Name>,
    /// Further paths that are writable inside, each an empty tmpfs.
    #[serde(default)]
    pub writable: Vec<String>,
    /// Further paths of a repository that the CLI obeys before its first prompt: names, or a few with slashes between
    /// them, the last perhaps with `*` at its end. Runs do not see them unless an operator approved them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantine: Vec<String>,
    /// jq filter from one line of output to events ([`Mapping`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<String>,
    /// Whether a clean exit counts without a final event.
    #[serde(default)]
    pub judge: Judge,
    /// Seconds between a `final` event and the end of a CLI that does not exit by itself.
    #[serde(default = "after_final_secs")]
    pub after_final_secs: u32,
    /// The model API that it asks. Without it the run has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelAccess>,
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

const fn after_final_secs() -> u32 {
    AFTER_FINAL_SECS
}

/// How the prompt reaches the CLI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptWay {
    /// On standard input, which is then closed.
    Stdin,
    /// As the last argument.
    Argument,
    /// In a file that `{{prompt_file}}` in `command` names.
    File,
}

/// Which model API a CLI asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelAccess {
    /// The protocol that the CLI speaks.
    pub dialect: Dialect,
    /// The model that is asked for where neither the task nor the operator names one.
    pub default: ModelName,
}

impl Manifest {
    /// Reads and checks `folder/cli.toml`.
    ///
    /// # Errors
    /// [`ImageError::File`], or [`ImageError::Manifest`] with line, column and field.
    pub fn read(folder: &Path) -> Result<Self, ImageError> {
        let path = folder.join(FILE_NAME);
        let file = |error| ImageError::File { path: path.clone(), error };
        let length = std::fs::metadata(&path).map_err(file)?.len();
        if length > MAX_BYTES {
            let message = format!("{length} bytes are more than a manifest may have ({MAX_BYTES})");
            return Err(ImageError::Manifest { path, message });
        }
        let text = std::fs::read_to_string(&path).map_err(file)?;
        Self::parse(&path, &text)
    }

    /// Checks a manifest's text; `path` is for messages.
    ///
    /// # Errors
    /// [`ImageError::Manifest`] with line, column and field.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ImageError> {
        let refuse = |message: String| ImageError::Manifest { path: path.to_owned(), message };
        let manifest: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            refuse(format!(
                "line {}: {}",
                before.matches('\n').count() + 1,
                error.message().replace('\n', " ")
            ))
        })?;
        manifest.check().map_err(|Problem { field, message }| {
            let line = line_of(text, field);
            refuse(format!("line {line}, field `{field}`: {message}"))
        })?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), Problem> {
        let problem = |field, message: &str| Err(Problem { field, message: message.to_owned() });
        match self.command.first() {
            None => return problem("command", "at least a program must be named"),
            Some(program) if program.is_empty() => return problem("command", "the program's name is empty"),
            Some(program) if program.contains('/') && !program.starts_with('/') => {
                return problem(
                    "command",
                    "the program must be an absolute path or a name to look up in PATH",
                );
            }
            Some(_) => {}
        }
        if self.command.iter().any(|part| part.contains('\0')) {
            return problem("command", "an argument cannot contain a NUL byte");
        }
        if self.prompt_prefix.as_ref().is_some_and(|prefix| prefix.contains('\0')) {
            return problem("prompt_prefix", "it cannot contain a NUL byte");
        }
        if let Some(bytes) = self.max_prompt_bytes {
            let most = self.prompt_room();
            if !(MIN_PROMPT_BYTES..=most).contains(&(bytes as usize)) {
                let message = format!("{MIN_PROMPT_BYTES} to {most} bytes for this way of giving the prompt");
                return Err(Problem { field: "max_prompt_bytes", message });
            }
        }
        for path in &self.writable {
            check_writable(path)
                .map_err(|error| Problem { field: "writable", message: error.to_string() })?;
        }
        for pattern in &self.quarantine {
            check_quarantine(pattern).map_err(|message| Problem {
                field: "quarantine",
                message: format!("{pattern:?}: {message}"),
            })?;
        }
        for (name, value) in &self.environment {
            let letter = |b: u8| b.is_ascii_alphabetic() || b == b'_';
            let good = name.bytes().next().is_some_and(letter)
                && name.bytes().all(|b| letter(b) || b.is_ascii_digit());
            if !good || value.contains('\0') {
                let message = format!("{name:?} is not a variable's name, or its value contains a NUL byte");
                return Err(Problem { field: "environment", message });
            }
        }
        if let Some(filter) = &self.events {
            Mapping::compile(filter)
                .map_err(|error| Problem { field: "events", message: error.to_string() })?;
        }
        if self.judge == Judge::Final && self.events.is_none() {
            return problem("judge", "\"final\" needs an `events` filter that tells of the final event");
        }
        if !(1..=MAX_AFTER_FINAL_SECS).contains(&self.after_final_secs) {
            let message = format!("1 to {MAX_AFTER_FINAL_SECS} seconds");
            return Err(Problem { field: "after_final_secs", message });
        }
        self.check_placeholders()
    }

    fn check_placeholders(&self) -> Result<(), Problem> {
        let values = self.values(None);
        for part in &self.command {
            values.fill(part).map_err(|message| Problem { field: "command", message })?;
        }
        for value in self.environment.values() {
            values.fill(value).map_err(|message| Problem { field: "environment", message })?;
        }
        if self.prompt == PromptWay::File && !self.command.iter().any(|part| part.contains("{{prompt_file}}"))
        {
            let message = "prompt = \"file\" needs {{prompt_file}} in the command".to_owned();
            return Err(Problem { field: "command", message });
        }
        Ok(())
    }

    /// What fills the placeholders of a run that asks for `model`, or for the manifest's own.
    pub fn values<'a>(&'a self, model: Option<&'a ModelName>) -> Values<'a> {
        let model = self.model.as_ref().map(|access| model.unwrap_or(&access.default));
        Values { model, prompt_file: self.prompt == PromptWay::File }
    }

    /// The filter from output to events, if there is one. It has been compiled before, in the check.
    pub fn mapping(&self) -> Option<Mapping> {
        self.events.as_ref().and_then(|filter| Mapping::compile(filter).ok())
    }
}

/// The form of a path that is quarantined wherever it stands.
fn check_quarantine(pattern: &str) -> Result<(), &'static str> {
    let names: Vec<&str> = pattern.split('/').collect();
    let (last, above) = names.split_last().unwrap_or((&"", &[]));
    let last = last.strip_suffix('*').unwrap_or(last);
    if pattern.len() > MAX_QUARANTINE_BYTES || names.len() > MAX_QUARANTINE_NAMES {
        return Err("it is too long");
    }
    if pattern.chars().any(|char| char.is_control() || char == '\\') {
        return Err("it has a backslash or a control character");
    }
    if above.iter().chain([&last]).any(|name| matches!(*name, "" | "." | "..") || name.contains('*')) {
        return Err("it is a name, or a few with a slash between two, and only the last may end with `*`");
    }
    Ok(())
}

struct Problem {
    field: &'static str,
    message: String,
}

/// The line on which a field (or a table) of the top level is defined; 1 if it is not to be found.
fn line_of(text: &str, field: &str) -> usize {
    let defines = |line: &str| {
        let line = line.trim_start().trim_start_matches('[').trim_start();
        line.strip_prefix(field).is_some_and(|rest| rest.trim_start().starts_with(['=', ']', '.']))
    };
    text.lines().position(defines).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "shell"
description = "Runs a script"
command = ["/bin/bash", "-s"]
prompt = "stdin"
writable = ["/var/tmp"]
events = '''
fromjson? | select(.type == "x") | {kind: "progress", message: .text}
'''

[environment]
LANG = "de_DE.UTF-8"
"#;

    fn parse(text: &str) -> Result<Manifest, String> {
        Manifest::parse(Path::new("images/shell/cli.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_a_manifest_and_launches_without_a_shell() {
        let manifest = parse(GOOD).expect("good");
        let prompt = "echo \"$(id)\"; 'x' \\0 `y`\nrm -rf /\n";
        let launch = manifest.launch(prompt, None).expect("stdin takes all");
        assert_eq!(launch.argv, ["/bin/bash", "-s"]);
        assert_eq!(launch.stdin, prompt);
        assert_eq!(launch.env["LANG"], "de_DE.UTF-8");
        assert_eq!(launch.env["HOME"], "/home/agent");
        assert!(manifest.mapping().is_some());
        assert!(!format!("{launch:?}").contains("rm -rf"), "a prompt is never printed");
    }

    #[test]
    fn reads_what_a_cli_with_a_model_needs() {
        let text = GOOD.replace(
            "[environment]",
            "[model]\ndialect = \"anthropic\"\ndefault = \"claude-sonnet-4-5\"\n[environment]",
        );
        let text = text.replacen("writable", "judge = \"final\"\nafter_final_secs = 3\nwritable", 1);
        let manifest = parse(&text).expect("good");
        let model = manifest.model.as_ref().expect("named");
        assert_eq!((model.dialect, model.default.as_str()), (Dialect::Anthropic, "claude-sonnet-4-5"));
        assert_eq!((manifest.judge, manifest.after_final_secs), (Judge::Final, 3));
        let stored = serde_json::to_value(&manifest).expect("JSON");
        assert_eq!(serde_json::from_value::<Manifest>(stored).expect("the same"), manifest);
        let plain = parse(GOOD).expect("good");
        assert_eq!((plain.judge, plain.after_final_secs), (Judge::Exit, 10));
    }

    #[test]
    fn says_file_line_and_field_of_what_it_refuses() {
        for (from, to, line, word) in [
            ("description", "descripton", "line 3", "descripton"),
            ("prompt = \"stdin\"", "prompt = \"pipe\"", "line 5", "pipe"),
            ("[\"/bin/bash\", \"-s\"]", "[]", "line 4", "command"),
            ("/bin/bash", "bin/bash", "line 4", "command"),
            ("/var/tmp", "/run/kage", "line 6", "writable"),
            ("fromjson?", "fromjson? |", "line 7", "events"),
            ("fromjson?", "env", "line 7", "env"),
            ("LANG", "\"LA NG\"", "line 11", "environment"),
            ("\"shell\"", "\"Shell\"", "line 2", "name"),
            ("name = \"shell\"", "", "", "name"),
            ("prompt = \"stdin\"", "prompt = \"file\"", "line 4", "prompt_file"),
            ("writable", "max_prompt_bytes = 100\nwritable", "line 6", "max_prompt_bytes"),
            ("writable", "max_prompt_bytes = 2000000\nwritable", "line 6", "1048576"),
            ("\"stdin\"", "\"argument\"\nmax_prompt_bytes = 131072", "line 6", "131070"),
            ("writable", "quarantine = [\"../x\"]\nwritable", "line 6", "quarantine"),
            ("writable", "quarantine = [\"/x\"]\nwritable", "line 6", "quarantine"),
            ("writable", "quarantine = [\"a*/x\"]\nwritable", "line 6", "quarantine"),
            ("writable", "quarantine = [\"*\"]\nwritable", "line 6", "quarantine"),
            ("writable", "quarantine = [\"a\\\\b\"]\nwritable", "line 6", "quarantine"),
            ("writable", "after_final_secs = 0\nwritable", "line 6", "after_final_secs"),
            ("writable", "judge = \"maybe\"\nwritable", "line 6", "maybe"),
            (
                "[environment]",
                "[model]\ndialect = \"grpc\"\ndefault = \"m\"\n[environment]",
                "line 12",
                "grpc",
            ),
            (
                "[environment]",
                "[model]\ndialect = \"chat\"\ndefault = \"-m\"\n[environment]",
                "line 13",
                "model",
            ),
        ] {
            let error = parse(&GOOD.replacen(from, to, 1)).expect_err(to);
            assert!(error.starts_with("images/shell/cli.toml: "), "{error}");
            assert!(error.contains(line) && error.contains(word), "{to}: {error}");
        }
    }
}
