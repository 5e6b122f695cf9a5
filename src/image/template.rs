//! `{{name}}` in a manifest's command and environment: filled in when a run starts, checked when the manifest is
//! read.

use crate::domain::model_name::ModelName;

/// Where the shim answers for the model API, in every sandbox that has one.
pub const GATEWAY_PORT: u16 = 8080;
const GATEWAY: &str = "http://127.0.0.1:8080";

/// What a CLI gets for a credential. The gateway drops it.
pub const TOKEN: &str = "kage-placeholder";

/// Where the shim writes a prompt that goes in by a file.
pub const PROMPT_FILE: &str = "/tmp/kage-prompt";

/// What there is to fill in for one run.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    /// None: the run has no model API.
    pub model: Option<&'a ModelName>,
    /// The prompt goes in by [`PROMPT_FILE`].
    pub prompt_file: bool,
}

impl Values<'_> {
    /// Without a model and a prompt file `{{` is text like any other.
    ///
    /// # Errors
    /// A sentence, for a placeholder that there is not, or not here.
    pub fn fill(&self, text: &str) -> Result<String, String> {
        if self.model.is_none() && !self.prompt_file {
            return Ok(text.to_owned());
        }
        fill(text, |placeholder| match (placeholder, self.model) {
            (Placeholder::PromptFile, _) if self.prompt_file => Ok(PROMPT_FILE),
            (Placeholder::PromptFile, _) => Err("{{prompt_file}} needs prompt = \"file\"".to_owned()),
            (Placeholder::Model, Some(model)) => Ok(model.as_str()),
            (Placeholder::Gateway, Some(_)) => Ok(GATEWAY),
            (Placeholder::Token, Some(_)) => Ok(TOKEN),
            (other, None) => Err(format!("{{{{{}}}}} needs a [model] table", other.name())),
        })
    }
}

/// What a manifest may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placeholder {
    /// The model that the run asks for.
    Model,
    /// Where the CLI finds the model API.
    Gateway,
    /// What stands where the CLI wants a credential: worth nothing.
    Token,
    /// The file with the prompt.
    PromptFile,
}

impl Placeholder {
    const ALL: [Self; 4] = [Self::Model, Self::Gateway, Self::Token, Self::PromptFile];

    const fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Gateway => "gateway",
            Self::Token => "token",
            Self::PromptFile => "prompt_file",
        }
    }
}

/// Replaces every placeholder of `text` by its value. What was put in is not looked at again.
fn fill<'v>(text: &str, value: impl Fn(Placeholder) -> Result<&'v str, String>) -> Result<String, String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let named = after.split_once("}}").and_then(|(name, after)| {
            Placeholder::ALL.into_iter().find(|known| known.name() == name).map(|known| (known, after))
        });
        let Some((placeholder, after)) = named else {
            let seen: String = after.chars().take(30).collect();
            return Err(format!(
                "`{{{{{seen}` is none of {{{{model}}}}, {{{{gateway}}}}, {{{{token}}}} and {{{{prompt_file}}}}"
            ));
        };
        filled.push_str(before);
        filled.push_str(value(placeholder)?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_the_one_in_the_address() {
        assert_eq!(GATEWAY, format!("http://127.0.0.1:{GATEWAY_PORT}"));
    }

    fn value(placeholder: Placeholder) -> Result<&'static str, String> {
        match placeholder {
            Placeholder::Model => Ok("{{token}}"),
            Placeholder::Gateway => Ok("http://g"),
            Placeholder::Token => Ok("t"),
            Placeholder::PromptFile => Err("no file".to_owned()),
        }
    }

    #[test]
    fn fills_each_once() {
        assert_eq!(fill("plain", value), Ok("plain".to_owned()));
        assert_eq!(fill("{{gateway}}/v1 {{token}}{{token}}", value), Ok("http://g/v1 tt".to_owned()));
        assert_eq!(fill("{{model}}", value), Ok("{{token}}".to_owned()), "a value is no template");
        assert_eq!(fill(r#"{"a":{"b":"{{gateway}}"}}"#, value), Ok(r#"{"a":{"b":"http://g"}}"#.to_owned()));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        for bad in ["{{modell}}", "{{", "{{ model }}", "{{}}", "{{{model}}}", "{{prompt_file}}"] {
            assert!(fill(bad, value).is_err(), "{bad}");
        }
    }
}
