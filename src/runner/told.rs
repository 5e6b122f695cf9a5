//! What a CLI tells of itself through its manifest's filter: events for the watchers, and the few facts that its
//! end is judged by. All of it is a claim.

use chrono::Utc;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::db::events::NewEvent;
use crate::db::runs::RunRow;
use crate::domain::event::EventKind;
use crate::domain::run::RunState;
use crate::image::mapped::MappedEvent;
use crate::wire::event::{Activity, Notice, Progress};

/// Kept of a CLI's words for the judgement, in bytes.
const KEPT: usize = 2000;
/// Shown of what a tool was given or gave back, in characters.
const SHOWN: usize = 200;

/// The facts that the end is judged by; stored with the output that they were read from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Told {
    /// The last final event.
    pub last_word: Option<LastWord>,
    /// The last error event.
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LastWord {
    pub ok: bool,
    pub message: Option<String>,
}

/// What an event means for how long its CLI may still run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// It has work to do.
    AtWork,
    /// It has said its last word.
    Done,
    Nothing,
}

/// Whose events these are.
pub(super) struct Teller {
    task_id: Uuid,
    run_id: Uuid,
    name: String,
    /// Only for CLIs without a gateway, which counts for itself.
    takes_cost: bool,
    /// USD, as the CLI says.
    cost_usd: f64,
    pub told: Told,
}

impl Teller {
    /// Goes on from what is stored.
    pub fn new(run: &RunRow, takes_cost: bool) -> Self {
        let told = run.told.clone().and_then(|told| serde_json::from_value(told).ok());
        Self {
            task_id: run.task_id,
            run_id: run.id,
            name: run.name.clone(),
            takes_cost,
            cost_usd: run.cost_usd,
            told: told.unwrap_or_default(),
        }
    }

    /// What the CLI says that it cost, in USD; `None` where the gateway knows better.
    pub fn cost(&self) -> Option<f64> {
        self.takes_cost.then_some(self.cost_usd)
    }

    /// Takes note of an event; what the watchers are told, and what it means.
    pub fn take(&mut self, event: MappedEvent) -> (Option<NewEvent>, Meaning) {
        match event {
            MappedEvent::Progress(message) => (Some(self.progress(message, None)), Meaning::Nothing),
            MappedEvent::Assistant(text) => {
                (Some(self.progress(text, Some(Activity::Assistant))), Meaning::AtWork)
            }
            MappedEvent::ToolCall { name, message } => {
                let words = format!("→ {name}: {}", first_line(&message));
                let activity = Activity::ToolCall { tool: name, argument: message };
                (Some(self.progress(words, Some(activity))), Meaning::AtWork)
            }
            MappedEvent::ToolResult { name, message, ok } => {
                let how = if ok == Some(false) { "failed: " } else { "" };
                let from = name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
                let words = format!("← {from}{how}{}", first_line(&message));
                let activity = Activity::ToolResult { tool: name, text: message, ok };
                (Some(self.progress(words, Some(activity))), Meaning::AtWork)
            }
            MappedEvent::Warning(message) => {
                (Some(self.notice(EventKind::Warning, message)), Meaning::Nothing)
            }
            MappedEvent::Error(message) => {
                self.told.error = Some(kept(&message));
                (Some(self.notice(EventKind::Error, message)), Meaning::Nothing)
            }
            MappedEvent::Usage(usage) => {
                if let Some(cost) = usage.cost_usd.filter(|_| self.takes_cost) {
                    self.cost_usd = cost;
                }
                (None, Meaning::Nothing)
            }
            MappedEvent::Final(last) => {
                let word =
                    if last.ok { "the CLI says that it is done" } else { "the CLI says that it failed" };
                let words = match &last.message {
                    Some(message) => format!("{word}: {message}"),
                    None => word.to_owned(),
                };
                let message = last.message.as_deref().map(kept);
                self.told.last_word = Some(LastWord { ok: last.ok, message });
                (Some(self.progress(words, Some(Activity::Final { ok: last.ok }))), Meaning::Done)
            }
        }
    }

    fn progress(&self, message: String, activity: Option<Activity>) -> NewEvent {
        let progress = Progress {
            task_id: self.task_id,
            cli_name: self.name.clone(),
            session_id: self.run_id,
            status: RunState::Running.progress_status(),
            message,
            timestamp: Utc::now(),
            activity,
            files_modified: None,
            cost: Some(self.cost_usd).filter(|cost| *cost > 0.0),
            duration: None,
        };
        NewEvent::other(EventKind::Progress, &progress)
    }

    fn notice(&self, kind: EventKind, message: String) -> NewEvent {
        let run = Some(self.name.clone());
        NewEvent::other(kind, &Notice { task_id: self.task_id, run, message, timestamp: Utc::now() })
    }
}

/// What a line of a terminal can show; the whole of it is in the event's `activity`, and in the log.
fn first_line(text: &str) -> String {
    let text = text.trim();
    let line: String = text.lines().next().unwrap_or_default().chars().take(SHOWN).collect();
    if line.len() < text.len() { format!("{line} …") } else { line }
}

fn kept(text: &str) -> String {
    let end = (0..=KEPT.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tools_words_are_cut_to_a_line() {
        assert_eq!(first_line("ls -la\n"), "ls -la");
        assert_eq!(first_line("\nExit code 1\nWRONG"), "Exit code 1 …");
        assert_eq!(first_line(&"é".repeat(201)), format!("{} …", "é".repeat(200)));
        assert_eq!(first_line(""), "");
    }

    #[test]
    fn what_is_kept_ends_at_a_character() {
        assert_eq!(kept("short"), "short");
        assert_eq!(kept(&"€".repeat(1000)).len(), KEPT - KEPT % 3);
    }
}
