//! What a CLI tells of itself through its manifest's filter: events for the watchers, and the few facts that its
//! end is judged by ([`Told`]). All of it is a claim.

use chrono::Utc;
use uuid::Uuid;

use crate::db::events::NewEvent;
use crate::db::runs::RunRow;
use crate::domain::event::EventKind;
use crate::domain::judgement::Told;
use crate::domain::run::RunState;
use crate::image::mapped::{MappedEvent, Meaning};
use crate::wire::event::{Activity, Notice, Progress};

/// Shown of what a tool was given or gave back, in characters.
const SHOWN: usize = 200;

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
    /// Both, as they are in the database.
    stored: (Told, f64),
}

impl Teller {
    /// Goes on from what is stored.
    pub fn new(run: &RunRow, takes_cost: bool) -> Self {
        let told = run.told.clone().and_then(|told| serde_json::from_value(told).ok());
        let told: Told = told.unwrap_or_default();
        Self {
            task_id: run.task_id,
            run_id: run.id,
            name: run.name.clone(),
            takes_cost,
            cost_usd: run.cost_usd,
            stored: (told.clone(), run.cost_usd),
            told,
        }
    }

    /// What the CLI says that it cost, in USD; `None` where the gateway knows better.
    pub fn cost(&self) -> Option<f64> {
        self.takes_cost.then_some(self.cost_usd)
    }

    /// Takes note of an event; what the watchers are told, and what it means.
    pub fn take(&mut self, event: MappedEvent) -> (Option<NewEvent>, Meaning) {
        let meaning = event.note(&mut self.told);
        (self.event(event), meaning)
    }

    fn event(&mut self, event: MappedEvent) -> Option<NewEvent> {
        Some(match event {
            MappedEvent::Progress(message) => self.progress(message, None),
            MappedEvent::Assistant(text) => self.progress(text, Some(Activity::Assistant)),
            MappedEvent::ToolCall { name, message } => {
                let words = format!("→ {name}: {}", first_line(&message));
                let activity = Activity::ToolCall { tool: name, argument: message };
                self.progress(words, Some(activity))
            }
            MappedEvent::ToolResult { name, message, ok } => {
                let how = if ok == Some(false) { "failed: " } else { "" };
                let from = name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
                let words = format!("← {from}{how}{}", first_line(&message));
                let activity = Activity::ToolResult { tool: name, text: message, ok };
                self.progress(words, Some(activity))
            }
            MappedEvent::Warning(message) => self.notice(EventKind::Warning, message),
            MappedEvent::Error(message) => self.notice(EventKind::Error, message),
            MappedEvent::Usage(usage) => {
                if let Some(cost) = usage.cost_usd.filter(|_| self.takes_cost) {
                    self.cost_usd = cost;
                }
                return None;
            }
            MappedEvent::StepUsage(usage) => {
                if let Some(cost) = usage.cost_usd.filter(|_| self.takes_cost) {
                    self.cost_usd += cost;
                }
                return None;
            }
            MappedEvent::Final(last) => {
                let word =
                    if last.ok { "the CLI says that it is done" } else { "the CLI says that it failed" };
                let words = match &last.message {
                    Some(message) => format!("{word}: {message}"),
                    None => word.to_owned(),
                };
                self.progress(words, Some(Activity::Final { ok: last.ok }))
            }
        })
    }

    /// What it has been told so far is stored.
    pub fn stored(&mut self) {
        self.stored = (self.told.clone(), self.cost_usd);
    }

    /// Forgets what is not stored: the same lines come again, and what they add must not count twice.
    pub fn rewind(&mut self) {
        (self.told, self.cost_usd) = self.stored.clone();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::mapped::Usage;

    #[test]
    fn lines_that_come_again_do_not_count_twice() {
        let mut teller = Teller {
            task_id: Uuid::nil(),
            run_id: Uuid::nil(),
            name: "shell".to_owned(),
            takes_cost: true,
            cost_usd: 0.0,
            told: Told::default(),
            stored: (Told::default(), 0.0),
        };
        let step = || MappedEvent::StepUsage(Usage { cost_usd: Some(0.25), ..Usage::default() });
        teller.take(step());
        teller.stored();
        teller.take(step());
        teller.take(MappedEvent::Error("the link breaks here".to_owned()));
        assert_eq!((teller.cost(), teller.told.error.is_some()), (Some(0.5), true));
        teller.rewind();
        assert_eq!((teller.cost(), teller.told.error.is_some()), (Some(0.25), false));
        teller.take(step());
        assert_eq!(teller.cost(), Some(0.5));
    }

    #[test]
    fn a_tools_words_are_cut_to_a_line() {
        assert_eq!(first_line("ls -la\n"), "ls -la");
        assert_eq!(first_line("\nExit code 1\nWRONG"), "Exit code 1 …");
        assert_eq!(first_line(&"é".repeat(201)), format!("{} …", "é".repeat(200)));
        assert_eq!(first_line(""), "");
    }
}
