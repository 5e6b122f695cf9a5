//! The name of a model, as a client or an operator writes it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most bytes of a model's name.
pub const MAX_BYTES: usize = 200;

/// A model's name: 1 to [`MAX_BYTES`] of letters, digits and `._:/@+-`, beginning with a letter or digit. So it is
/// never an option on a command line, and needs no quoting in JSON, TOML or a URL's path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

/// Says which rule a model's name broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a model's name has 1 to {MAX_BYTES} of letters, digits and the characters . _ : / @ + -, and begins with a \
     letter or digit"
)]
pub struct InvalidModelName;

impl ModelName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = InvalidModelName;

    fn from_str(text: &str) -> Result<Self, InvalidModelName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:/@+-".contains(&b);
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if first && text.len() <= MAX_BYTES && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidModelName)
        }
    }
}

impl TryFrom<String> for ModelName {
    type Error = InvalidModelName;

    fn try_from(text: String) -> Result<Self, InvalidModelName> {
        text.parse()
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> Self {
        name.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_vendors_use_and_nothing_that_needs_quoting() {
        for good in
            ["claude-sonnet-4-5", "qwen2.5-coder:7b", "openai/gpt-5.5", "us.anthropic.x-v1:0", "a@b+c"]
        {
            assert_eq!(good.parse::<ModelName>().map(String::from), Ok(good.to_owned()));
        }
        for bad in
            ["", "-m", ".x", "a b", "a\"b", "a\\b", "{{model}}", "a\n", "ä", &"a".repeat(MAX_BYTES + 1)]
        {
            assert_eq!(bad.parse::<ModelName>(), Err(InvalidModelName), "{bad:?}");
        }
    }
}
