//! What was seen of one attempt.

use std::collections::BTreeSet;
use std::time::Duration;

use kage_model_server::recorder::Recorded;
use kage_shim::protocol::Exited;
use serde_json::Value;

use crate::domain::judgement::{Told, by_own_account};
use crate::domain::run::RunState;
use crate::domain::verdict::Verdict;
use crate::image::manifest::Manifest;
use crate::image::mapped::MappedEvent;
use crate::kit::processes::Process;
use crate::kit::report::{Item, Need, counted};
use crate::kit::tree::Entry;
use crate::sandbox::refusals::tally::Refused;

/// Who ended the CLI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    ByItself,
    /// We, its final event long past.
    AfterFinal,
    /// We, over the attempt's time.
    OverTime,
    /// We, as planned.
    AsPlanned,
}

#[derive(Debug)]
pub struct Observed {
    pub exited: Exited,
    pub ended: Ended,
    /// From the container's creation to the shim's first word.
    pub sandbox: Duration,
    /// From the CLI's start.
    pub first_output: Option<Duration>,
    pub first_request: Option<Duration>,
    pub final_event: Option<Duration>,
    pub total: Duration,
    /// From our telling the CLI to end to its end.
    pub stopping: Option<Duration>,
    pub events: Vec<MappedEvent>,
    /// Outputs of the filter that are no events.
    pub ignored: u32,
    /// The beginning of both streams.
    pub output: Vec<u8>,
    /// The beginning of standard output alone: what the filter is given.
    pub stdout: Vec<u8>,
    pub requests: Vec<Recorded>,
    /// All that ran in the sandbox, but for the shim. Empty where the host does not show it.
    pub processes: BTreeSet<Process>,
    pub most_processes: usize,
    pub memory_peak: Option<u64>,
    /// In the worktree: new or changed.
    pub changed: Vec<Entry>,
    /// In `/tmp` and HOME. None: the host does not show them.
    pub written: Option<Vec<Entry>>,
    /// System calls that were refused, and addresses that it wanted to reach. None: the runtime does not tell.
    pub refused: Option<Vec<Refused>>,
    /// None: nobody listened.
    pub hosts_asked: Option<BTreeSet<String>>,
}

impl Observed {
    /// What the runner makes of the CLI's own words and end, without the change and the gateway's record.
    ///
    /// # Errors
    /// Why it is no success.
    pub fn regarded(&self, manifest: &Manifest) -> Result<(), String> {
        let verdict = match self.ended {
            Ended::AfterFinal => Verdict::done(),
            Ended::OverTime => {
                let seconds = self.total.as_secs_f64();
                Verdict::new(RunState::TimedOut, format!("it did not end within {seconds:.0} s"))
            }
            Ended::ByItself | Ended::AsPlanned => Verdict::of_exit(&self.exited, false),
        };
        let mut told = Told::default();
        for event in &self.events {
            event.note(&mut told);
        }
        let judged = by_own_account(verdict, manifest.judge, &told);
        match judged.state {
            RunState::Succeeded => Ok(()),
            state => Err(judged.error.map_or(state.to_string(), |error| shortened(&error))),
        }
    }

    /// The end in words.
    pub fn ending(&self) -> String {
        let how = match (&self.exited.spawn_error, self.exited.code, self.exited.signal) {
            (Some(error), ..) => format!("not started ({error})"),
            (_, Some(code), _) => format!("status {code}"),
            (_, _, Some(signal)) => format!("signal {signal}"),
            _ => "no status".to_owned(),
        };
        let who = match self.ended {
            Ended::ByItself => "",
            Ended::AfterFinal => ", ended by us after its final event",
            Ended::OverTime => ", ended by us over its time",
            Ended::AsPlanned => ", after SIGTERM",
        };
        let requests = counted(self.model_calls(), "request", "requests");
        format!("{how}{who}, {:.1} s, {requests}", self.total.as_secs_f64())
    }

    /// The end, and what the CLI's own words make of it, where that is more.
    pub fn account(&self, manifest: &Manifest) -> String {
        let ending = self.ending();
        let Err(why) = self.regarded(manifest) else {
            return format!("{ending}; by its own account a success");
        };
        let more = match (&self.exited.spawn_error, self.ended, self.exited.code) {
            (Some(_), ..) | (_, Ended::OverTime, _) => "",
            (.., Some(code)) => why
                .strip_prefix(&format!("the CLI ended with status {code}"))
                .map_or(why.as_str(), |rest| rest.trim_start_matches([':', ';', ' '])),
            _ => &why,
        };
        if more.is_empty() { ending } else { format!("{ending}; {more}") }
    }

    /// Why nothing was seen of the CLI's work: it did not start, or never asked its model.
    pub fn idle(&self) -> Option<&'static str> {
        if self.exited.spawn_error.is_some() {
            Some("the CLI could not be started")
        } else {
            (self.model_calls() == 0).then_some("the model was never asked")
        }
    }

    /// An item that only a CLI at work can pass or fail.
    pub fn item(
        &self,
        id: &'static str,
        need: Need,
        title: &'static str,
        seen: Result<String, String>,
    ) -> Item {
        match self.idle() {
            Some(why) => Item::not_measured(id, need, title, why),
            None => Item::new(id, need, title, seen),
        }
    }

    /// Whether a text of a request to the model contains `text`.
    pub fn arrived(&self, text: &str) -> bool {
        self.requests.iter().filter_map(|request| request.json.as_ref()).any(|body| holds(body, text))
    }

    /// Requests for an answer.
    pub fn model_calls(&self) -> usize {
        self.requests.iter().filter(|request| request.turn.is_some()).count()
    }

    /// Whether a request was answered with the fault that was planned.
    pub fn met_fault(&self) -> bool {
        self.requests.iter().any(|request| request.fault.is_some())
    }

    /// The last lines of the output, for a reader who wants to know why.
    pub fn last_words(&self) -> String {
        let text = String::from_utf8_lossy(&self.output);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(2)..];
        if last.is_empty() { "it printed nothing".to_owned() } else { shortened(&last.join(" | ")) }
    }
}

/// Whether a string anywhere in `value` contains `text`.
fn holds(value: &Value, text: &str) -> bool {
    match value {
        Value::String(string) => string.contains(text),
        Value::Array(values) => values.iter().any(|value| holds(value, text)),
        Value::Object(fields) => fields.values().any(|value| holds(value, text)),
        _ => false,
    }
}

/// At most 200 characters.
pub fn shortened(text: &str) -> String {
    let text = text.replace('\n', " ");
    if text.chars().count() <= 200 { text } else { text.chars().take(200).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_prompt_wherever_a_dialect_puts_it() {
        let body = serde_json::json!({ "a": [{ "b": { "text": "before\nthe prompt\nafter" } }], "n": 1 });
        assert!(holds(&body, "the prompt\naf"));
        assert!(!holds(&body, "the  prompt"));
    }
}
