//! From a manifest and a prompt to what the shim is to run. Nothing of it goes through a shell.

use std::collections::BTreeMap;

use crate::domain::model_name::ModelName;
use crate::domain::prompt;
use crate::image::error::LaunchError;
use crate::image::manifest::{Manifest, PromptWay};
use crate::sandbox::profile::HOME;

/// The kernel takes no longer argument (`MAX_ARG_STRLEN`, 32 pages), the closing NUL included.
const MAX_ARGUMENT: usize = 128 * 1024 - 1;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the shim is to run for one prompt.
#[derive(Clone, PartialEq, Eq)]
pub struct Launch {
    pub argv: Vec<String>,
    /// The CLI's whole environment.
    pub env: BTreeMap<String, String>,
    pub stdin: String,
    /// The text for [`crate::image::template::PROMPT_FILE`].
    pub file: Option<String>,
}

/// Holds a prompt: never printed.
impl std::fmt::Debug for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Launch").field("program", &self.argv.first()).finish_non_exhaustive()
    }
}

impl Manifest {
    /// Most bytes of a prompt that its way in can carry behind the prefix, whatever the CLI makes of it.
    pub fn prompt_room(&self) -> usize {
        let prefix = self.prompt_prefix.as_ref().map_or(0, String::len);
        match self.prompt {
            // One for the space in front.
            PromptWay::Argument => MAX_ARGUMENT.saturating_sub(prefix + 1),
            PromptWay::Stdin | PromptWay::File => prompt::MAX_BYTES,
        }
    }

    /// What to run for a prompt, which asks for `model`, or for the manifest's own.
    ///
    /// A prompt as an argument could be read as an option: unless the command ends in `--`, one that begins with
    /// `-` gets a space in front.
    ///
    /// # Errors
    /// [`LaunchError`], for a prompt that no argument can carry, or that is longer than the manifest allows.
    pub fn launch(&self, prompt: &str, model: Option<&ModelName>) -> Result<Launch, LaunchError> {
        if let Some(most) = self.max_prompt_bytes.map(|most| most as usize)
            && prompt.len() > most
        {
            return Err(LaunchError::PromptOverBound { length: prompt.len(), most });
        }
        let prompt = format!("{}{prompt}", self.prompt_prefix.as_deref().unwrap_or_default());
        let values = self.values(model);
        let fill = |text: &String| values.fill(text).map_err(LaunchError::Template);
        let mut argv = self.command.iter().map(fill).collect::<Result<Vec<_>, _>>()?;
        let (mut stdin, mut file) = (String::new(), None);
        match self.prompt {
            PromptWay::Stdin => stdin = prompt,
            PromptWay::File => file = Some(prompt),
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
        for (name, value) in &self.environment {
            env.insert(name.clone(), fill(value)?);
        }
        Ok(Launch { argv, env, stdin, file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::template::PROMPT_FILE;

    const CLI: &str = r#"
name = "cli"
command = ["cli", "--model", "openai/{{model}}", "-f", "{{prompt_file}}"]
prompt = "file"
[model]
dialect = "chat"
default = "small-1"
[environment]
BASE = "{{gateway}}/v1"
CONFIG = '{"a":{"url":"{{gateway}}","key":"{{token}}"}}'
"#;

    fn parse(text: &str) -> Result<Manifest, String> {
        Manifest::parse("images/cli/cli.toml".as_ref(), text).map_err(|error| error.to_string())
    }

    #[test]
    fn placeholders_are_filled_in() {
        let manifest = parse(CLI).expect("good");
        let launch = manifest.launch("-x {{model}}", None).expect("launches");
        assert_eq!(launch.argv, ["cli", "--model", "openai/small-1", "-f", PROMPT_FILE]);
        assert_eq!(launch.env["BASE"], "http://127.0.0.1:8080/v1");
        assert_eq!(launch.env["CONFIG"], r#"{"a":{"url":"http://127.0.0.1:8080","key":"kage-placeholder"}}"#);
        assert_eq!(launch.file.as_deref(), Some("-x {{model}}"), "a prompt is no template");
        assert_eq!(launch.stdin, "");
        let other = "big-2".parse().expect("a name");
        assert_eq!(manifest.launch("x", Some(&other)).expect("launches").argv[2], "openai/big-2");
    }

    #[test]
    fn placeholders_are_checked_when_the_manifest_is_read() {
        let without = CLI.replace("[model]\ndialect = \"chat\"\ndefault = \"small-1\"\n", "");
        for (text, word) in [
            (CLI.replace("{{model}}", "{{modell}}"), "modell"),
            (CLI.replace("{{token}}", "{{ token }}"), "token"),
            (CLI.replace("\"file\"", "\"stdin\""), "prompt_file"),
            (without, "[model]"),
        ] {
            let error = parse(&text).expect_err(word);
            assert!(error.contains(word), "{error}");
        }
        let literal =
            parse("name = \"x\"\ncommand = [\"x\", \"{{any}}\"]\nprompt = \"stdin\"").expect("good");
        assert_eq!(literal.launch("", None).expect("launches").argv[1], "{{any}}");
    }

    #[test]
    fn a_prompt_as_an_argument_is_never_an_option() {
        let mut manifest =
            parse("name = \"x\"\ncommand = [\"x\", \"-s\"]\nprompt = \"argument\"").expect("good");
        let argument = |manifest: &Manifest, prompt: &str| {
            manifest.launch(prompt, None).map(|launch| launch.argv[2].clone())
        };
        assert_eq!(argument(&manifest, "a b"), Ok("a b".to_owned()));
        assert_eq!(argument(&manifest, "--yolo"), Ok(" --yolo".to_owned()));
        assert_eq!(argument(&manifest, "a\0b"), Err(LaunchError::PromptWithNul));
        assert_eq!(argument(&manifest, &"a".repeat(MAX_ARGUMENT)), Ok("a".repeat(MAX_ARGUMENT)));
        assert!(argument(&manifest, &"a".repeat(MAX_ARGUMENT + 1)).is_err());
        manifest.max_prompt_bytes = Some(2000);
        assert!(argument(&manifest, &"a".repeat(2000)).is_ok());
        let over = argument(&manifest, &"a".repeat(2001)).expect_err("over the bound").to_string();
        assert!(over.contains("2001") && over.contains("max_prompt_bytes"), "{over}");
        manifest.max_prompt_bytes = None;
        manifest.command[1] = "--".to_owned();
        assert_eq!(argument(&manifest, "--yolo"), Ok("--yolo".to_owned()));
        manifest.prompt_prefix = Some("You are careful.\n".to_owned());
        assert_eq!(argument(&manifest, "-x"), Ok("You are careful.\n-x".to_owned()));
    }
}
