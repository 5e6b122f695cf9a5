//! `cli.toml`: how one CLI is driven. Data, checked as a whole when it is read.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::domain::name::Name;
use crate::image::error::{ImageError, LaunchError};
use crate::image::mapping::Mapping;
use crate::sandbox::profile::HOME;
use crate::sandbox::spec::check_writable;

/// The manifest's file name in an image's folder.
pub const FILE_NAME: &str = "cli.toml";

/// Most bytes of a manifest.
const MAX_BYTES: u64 = 256 * 1024;

/// The kernel takes no longer argument (`MAX_ARG_STRLEN`, 32 pages), the closing NUL included.
const MAX_ARGUMENT: usize = 128 * 1024 - 1;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
    /// Further paths that are writable inside, each an empty tmpfs.
    #[serde(default)]
    pub writable: Vec<String>,
    /// jq filter from one line of output to events ([`Mapping`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<String>,
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
}

/// How the prompt reaches the CLI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptWay {
    /// On standard input, which is then closed.
    Stdin,
    /// As the last argument.
    Argument,
}

/// What the shim is to run for one prompt.
#[derive(Clone, PartialEq, Eq)]
pub struct Launch {
    pub argv: Vec<String>,
    /// The CLI's whole environment.
    pub env: BTreeMap<String, String>,
    pub stdin: String,
}

/// Holds a prompt: never printed.
impl std::fmt::Debug for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Launch").field("program", &self.argv.first()).finish_non_exhaustive()
    }
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
        for path in &self.writable {
            check_writable(path)
                .map_err(|error| Problem { field: "writable", message: error.to_string() })?;
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
        Ok(())
    }

    /// What to run for a prompt. Nothing of it goes through a shell.
    ///
    /// A prompt as an argument could be read as an option: unless the command ends in `--`, one that begins with
    /// `-` gets a space in front.
    ///
    /// # Errors
    /// [`LaunchError`], for a prompt that no argument can carry.
    pub fn launch(&self, prompt: &str) -> Result<Launch, LaunchError> {
        let prompt = format!("{}{prompt}", self.prompt_prefix.as_deref().unwrap_or_default());
        let mut argv = self.command.clone();
        let mut stdin = String::new();
        match self.prompt {
            PromptWay::Stdin => stdin = prompt,
            PromptWay::Argument => {
                let ended = argv.last().is_some_and(|last| last == "--");
                let argument = if prompt.starts_with('-') && !ended { format!(" {prompt}") } else { prompt };
                if argument.len() > MAX_ARGUMENT {
                    return Err(LaunchError::PromptTooLong { length: argument.len(), most: MAX_ARGUMENT });
                }
                if argument.contains('\0') {
                    return Err(LaunchError::PromptWithNul);
                }
                argv.push(argument);
            }
        }
        let defaults = [
            ("PATH", DEFAULT_PATH),
            ("HOME", HOME),
            ("TMPDIR", "/tmp"),
            ("LANG", "C.UTF-8"),
            ("USER", "agent"),
        ];
        let mut env: BTreeMap<String, String> =
            defaults.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        env.extend(self.environment.clone());
        Ok(Launch { argv, env, stdin })
    }

    /// The filter from output to events, if there is one. It has been compiled before, in the check.
    pub fn mapping(&self) -> Option<Mapping> {
        self.events.as_ref().and_then(|filter| Mapping::compile(filter).ok())
    }
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
        let launch = manifest.launch(prompt).expect("stdin takes all");
        assert_eq!(launch.argv, ["/bin/bash", "-s"]);
        assert_eq!(launch.stdin, prompt);
        assert_eq!(launch.env["LANG"], "de_DE.UTF-8");
        assert_eq!(launch.env["HOME"], "/home/agent");
        assert!(manifest.mapping().is_some());
        assert!(!format!("{launch:?}").contains("rm -rf"), "a prompt is never printed");
    }

    #[test]
    fn a_prompt_as_an_argument_is_never_an_option() {
        let mut manifest = parse(&GOOD.replace("\"stdin\"", "\"argument\"")).expect("good");
        let argument =
            |manifest: &Manifest, prompt: &str| manifest.launch(prompt).map(|launch| launch.argv[2].clone());
        assert_eq!(argument(&manifest, "a b"), Ok("a b".to_owned()));
        assert_eq!(argument(&manifest, "--yolo"), Ok(" --yolo".to_owned()));
        assert_eq!(argument(&manifest, "a\0b"), Err(LaunchError::PromptWithNul));
        assert_eq!(argument(&manifest, &"a".repeat(MAX_ARGUMENT)), Ok("a".repeat(MAX_ARGUMENT)));
        assert!(argument(&manifest, &"a".repeat(MAX_ARGUMENT + 1)).is_err());
        manifest.command[1] = "--".to_owned();
        assert_eq!(argument(&manifest, "--yolo"), Ok("--yolo".to_owned()));
        manifest.prompt_prefix = Some("You are careful.\n".to_owned());
        assert_eq!(argument(&manifest, "-x"), Ok("You are careful.\n-x".to_owned()));
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
        ] {
            let error = parse(&GOOD.replacen(from, to, 1)).expect_err(to);
            assert!(error.starts_with("images/shell/cli.toml: "), "{error}");
            assert!(error.contains(line) && error.contains(word), "{to}: {error}");
        }
    }
}
