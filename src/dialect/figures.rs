//! Where each dialect puts what a call cost, and how its answer ends.

use crate::dialect::scan::{Pattern, Scalar};
use crate::domain::model::{Dialect, ModelUsage};

/// What is picked out of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// The kind of an event, or of a whole answer.
    Kind,
    Model,
    Error,
    /// A finish reason, a final status, or `done`.
    Finish,
    Count(Count),
}

/// Counts of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    Input,
    Output,
    CacheRead,
    CacheWrite,
    /// Gemini: thought, and not among the output.
    Thought,
    /// Gemini: results of its own tools, and not among the input.
    ToolInput,
    Total,
    /// Anthropic: the turns of one call, compaction's among them; these are added up.
    TurnInput,
    TurnOutput,
    TurnCacheRead,
    TurnCacheWrite,
}

const COUNTS: usize = Count::TurnCacheWrite as usize + 1;

const fn at(path: &'static [&'static str], slot: Slot) -> Pattern<Slot> {
    Pattern { path, slot }
}

const fn count(path: &'static [&'static str], count: Count) -> Pattern<Slot> {
    at(path, Slot::Count(count))
}

/// The patterns of a dialect's answers.
pub(crate) const fn patterns(dialect: Dialect) -> &'static [Pattern<Slot>] {
    match dialect {
        Dialect::Anthropic => ANTHROPIC,
        Dialect::Responses => RESPONSES,
        Dialect::Chat => CHAT,
        Dialect::Gemini => GEMINI,
        Dialect::Ollama => OLLAMA,
    }
}

const ANTHROPIC: &[Pattern<Slot>] = &[
    at(&["type"], Slot::Kind),
    at(&["model"], Slot::Model),
    at(&["message", "model"], Slot::Model),
    at(&["error", "message"], Slot::Error),
    count(&["usage", "input_tokens"], Count::Input),
    count(&["usage", "output_tokens"], Count::Output),
    count(&["usage", "cache_read_input_tokens"], Count::CacheRead),
    count(&["usage", "cache_creation_input_tokens"], Count::CacheWrite),
    count(&["usage", "iterations", "*", "input_tokens"], Count::TurnInput),
    count(&["usage", "iterations", "*", "output_tokens"], Count::TurnOutput),
    count(&["usage", "iterations", "*", "cache_read_input_tokens"], Count::TurnCacheRead),
    count(&["usage", "iterations", "*", "cache_creation_input_tokens"], Count::TurnCacheWrite),
    count(&["message", "usage", "input_tokens"], Count::Input),
    count(&["message", "usage", "output_tokens"], Count::Output),
    count(&["message", "usage", "cache_read_input_tokens"], Count::CacheRead),
    count(&["message", "usage", "cache_creation_input_tokens"], Count::CacheWrite),
];

const RESPONSES: &[Pattern<Slot>] = &[
    at(&["type"], Slot::Kind),
    at(&["object"], Slot::Kind),
    at(&["model"], Slot::Model),
    at(&["response", "model"], Slot::Model),
    at(&["status"], Slot::Finish),
    at(&["error", "message"], Slot::Error),
    at(&["response", "error", "message"], Slot::Error),
    // Of an event of type `error`; nothing else has it at the root.
    at(&["message"], Slot::Error),
    count(&["usage", "input_tokens"], Count::Input),
    count(&["usage", "output_tokens"], Count::Output),
    count(&["usage", "input_tokens_details", "cached_tokens"], Count::CacheRead),
    count(&["usage", "input_tokens_details", "cache_write_tokens"], Count::CacheWrite),
    count(&["response", "usage", "input_tokens"], Count::Input),
    count(&["response", "usage", "output_tokens"], Count::Output),
    count(&["response", "usage", "input_tokens_details", "cached_tokens"], Count::CacheRead),
    count(&["response", "usage", "input_tokens_details", "cache_write_tokens"], Count::CacheWrite),
];

const CHAT: &[Pattern<Slot>] = &[
    at(&["model"], Slot::Model),
    at(&["error"], Slot::Error),
    at(&["error", "message"], Slot::Error),
    at(&["choices", "*", "finish_reason"], Slot::Finish),
    count(&["usage", "prompt_tokens"], Count::Input),
    count(&["usage", "completion_tokens"], Count::Output),
    count(&["usage", "total_tokens"], Count::Total),
    count(&["usage", "prompt_tokens_details", "cached_tokens"], Count::CacheRead),
    count(&["usage", "prompt_tokens_details", "cache_write_tokens"], Count::CacheWrite),
    count(&["usage", "prompt_cache_hit_tokens"], Count::CacheRead),
    // Some compatible servers put it beside the last choice.
    count(&["choices", "*", "usage", "prompt_tokens"], Count::Input),
    count(&["choices", "*", "usage", "completion_tokens"], Count::Output),
    count(&["choices", "*", "usage", "cached_tokens"], Count::CacheRead),
];

const GEMINI: &[Pattern<Slot>] = &[
    at(&["modelVersion"], Slot::Model),
    at(&["error", "message"], Slot::Error),
    at(&["candidates", "*", "finishReason"], Slot::Finish),
    at(&["promptFeedback", "blockReason"], Slot::Finish),
    count(&["usageMetadata", "promptTokenCount"], Count::Input),
    count(&["usageMetadata", "candidatesTokenCount"], Count::Output),
    count(&["usageMetadata", "thoughtsTokenCount"], Count::Thought),
    count(&["usageMetadata", "toolUsePromptTokenCount"], Count::ToolInput),
    count(&["usageMetadata", "cachedContentTokenCount"], Count::CacheRead),
    count(&["usageMetadata", "totalTokenCount"], Count::Total),
];

const OLLAMA: &[Pattern<Slot>] = &[
    at(&["model"], Slot::Model),
    at(&["error"], Slot::Error),
    at(&["done"], Slot::Finish),
    count(&["prompt_eval_count"], Count::Input),
    count(&["eval_count"], Count::Output),
];

/// What one event said.
#[derive(Debug, Default)]
pub(crate) struct Event {
    pub kind: Option<String>,
    pub model: Option<String>,
    pub error: Option<String>,
    /// A finish reason that is a text or true.
    pub finish: Option<String>,
    pub counts: Counts,
}

impl Event {
    pub(crate) fn take_in(&mut self, slot: Slot, value: Scalar) {
        match (slot, value) {
            (Slot::Kind, Scalar::Text(text)) => self.kind = Some(text),
            (Slot::Model, Scalar::Text(text)) => self.model = Some(text),
            (Slot::Error, Scalar::Text(text)) => self.error = Some(text),
            (Slot::Finish, Scalar::Text(text)) => self.finish = Some(text),
            (Slot::Finish, Scalar::True) => self.finish = Some("true".to_owned()),
            (Slot::Count(count), Scalar::Number(number)) => self.counts.take_in(count, number),
            _ => {}
        }
    }

    /// Whether the answer is over with this event.
    pub(crate) fn is_last(&self, dialect: Dialect) -> bool {
        let kind = self.kind.as_deref().unwrap_or_default();
        match dialect {
            Dialect::Anthropic => matches!(kind, "message_stop" | "message" | "error"),
            Dialect::Responses => match kind {
                "response" => {
                    matches!(
                        self.finish.as_deref(),
                        Some("completed" | "incomplete" | "failed" | "cancelled")
                    )
                }
                kind => {
                    matches!(kind, "response.completed" | "response.incomplete" | "response.failed" | "error")
                }
            },
            Dialect::Chat | Dialect::Gemini | Dialect::Ollama => {
                self.finish.is_some() || self.error.is_some()
            }
        }
    }
}

/// The greatest of each count that was seen: a provider's counts only ever grow within one answer.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts([Option<u64>; COUNTS]);

impl Counts {
    fn take_in(&mut self, count: Count, number: u64) {
        let place = &mut self.0[count as usize];
        let turn = matches!(
            count,
            Count::TurnInput | Count::TurnOutput | Count::TurnCacheRead | Count::TurnCacheWrite
        );
        let before = place.unwrap_or(0);
        *place = Some(if turn { before.saturating_add(number) } else { before.max(number) });
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine = (*mine).max(theirs);
        }
    }

    fn get(&self, count: Count) -> u64 {
        self.0[count as usize].unwrap_or(0)
    }

    /// What was used; none where neither input nor output was told.
    pub(crate) fn usage(&self, dialect: Dialect) -> Option<ModelUsage> {
        self.0[Count::Input as usize].or(self.0[Count::Output as usize])?;
        let (input, output) = (self.get(Count::Input), self.get(Count::Output));
        let (read, write) = (self.get(Count::CacheRead), self.get(Count::CacheWrite));
        Some(match dialect {
            // Cached input is not among the input here.
            Dialect::Anthropic => {
                let turns = (self.get(Count::TurnCacheRead), self.get(Count::TurnCacheWrite));
                let turn_input = self.get(Count::TurnInput).saturating_add(turns.0).saturating_add(turns.1);
                ModelUsage {
                    input: input.saturating_add(read).saturating_add(write).max(turn_input),
                    output: output.max(self.get(Count::TurnOutput)),
                    cached_input: read.max(turns.0),
                    cache_write: write.max(turns.1),
                }
            }
            Dialect::Gemini => ModelUsage {
                input: input.saturating_add(self.get(Count::ToolInput)),
                output: output.saturating_add(self.get(Count::Thought)),
                cached_input: read,
                cache_write: write,
            },
            // Some count what was thought in the total only.
            Dialect::Chat => ModelUsage {
                input,
                output: output.max(self.get(Count::Total).saturating_sub(input)),
                cached_input: read,
                cache_write: write,
            },
            Dialect::Responses | Dialect::Ollama => {
                ModelUsage { input, output, cached_input: read, cache_write: write }
            }
        })
    }
}
