//! What a model call is, whoever answers it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The protocol that a CLI and a provider speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// Anthropic's Messages.
    Anthropic,
    /// OpenAI's Responses.
    Responses,
    /// OpenAI's Chat Completions, and whatever is compatible with it.
    Chat,
    /// Gemini's `generateContent` and `streamGenerateContent`.
    Gemini,
    /// Ollama's `/api/chat`.
    Ollama,
}

/// The kinds of tools that a provider runs by itself, whatever it calls them.
pub const SERVER_TOOL_KINDS: &[&str] = &[
    "web_search",
    "web_fetch",
    "code_execution",
    "computer_use",
    "file_search",
    "image_generation",
    "maps",
    "mcp",
];

/// Names a dialect that there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a dialect is one of anthropic, responses, chat, gemini, ollama")]
pub struct UnknownDialect;

impl Dialect {
    pub const ALL: [Self; 5] = [Self::Anthropic, Self::Responses, Self::Chat, Self::Gemini, Self::Ollama];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::Responses => "responses",
            Self::Chat => "chat",
            Self::Gemini => "gemini",
            Self::Ollama => "ollama",
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Dialect {
    type Err = UnknownDialect;

    fn from_str(text: &str) -> Result<Self, UnknownDialect> {
        Self::ALL.into_iter().find(|dialect| dialect.as_str() == text).ok_or(UnknownDialect)
    }
}

/// Tokens of one model call, or of many, as the provider counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelUsage {
    /// All input, with what came from a cache and what was written to one.
    pub input: u64,
    /// All output, with what the model thought and did not say.
    pub output: u64,
    /// Of `input`: read from the provider's cache.
    pub cached_input: u64,
    /// Of `input`: written to the provider's cache.
    pub cache_write: u64,
}

impl ModelUsage {
    /// Input and output together.
    pub const fn total(&self) -> u64 {
        self.input.saturating_add(self.output)
    }

    /// The sum; it saturates, for the figures are the provider's word.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            input: self.input.saturating_add(other.input),
            output: self.output.saturating_add(other.output),
            cached_input: self.cached_input.saturating_add(other.cached_input),
            cache_write: self.cache_write.saturating_add(other.cache_write),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialect_has_one_name_everywhere() {
        for dialect in Dialect::ALL {
            let json = serde_json::to_value(dialect).unwrap();
            assert_eq!(json, dialect.as_str());
            assert_eq!(json.as_str().unwrap().parse(), Ok(dialect));
        }
        assert_eq!("Chat".parse::<Dialect>(), Err(UnknownDialect));
    }

    #[test]
    fn sums_saturate() {
        let most = ModelUsage { input: u64::MAX, output: 1, cached_input: 2, cache_write: 3 };
        let sum = most.plus(most);
        assert_eq!(sum, ModelUsage { input: u64::MAX, output: 2, cached_input: 4, cache_write: 6 });
        assert_eq!(sum.total(), u64::MAX);
    }
}
