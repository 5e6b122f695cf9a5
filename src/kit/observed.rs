//! What was seen of one attempt.

use std::collections::BTreeSet;
use std::time::Duration;

use kage_model_server::recorder::Recorded;
use kage_shim::protocol::Exited;

use crate::image::manifest::{Judge, Manifest};
use crate::image::mapped::MappedEvent;
use crate::kit::processes::Process;
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
    /// What the runner would make of the CLI's own words and end, without the change and the gateway's record.
    ///
    /// # Errors
    /// Why it is no success.
    pub fn regarded(&self, manifest: &Manifest) -> Result<(), String> {
        if let Some(error) = &self.exited.spawn_error {
            return Err(format!("it could not be started: {error}"));
        }
        let last = self.events.iter().rev().find_map(|event| match event {
            MappedEvent::Final(last) => Some(last),
            _ => None,
        });
        match (self.ended, last) {
            (_, Some(last)) if !last.ok => {
                return Err(format!(
                    "its final event says failure: {}",
                    shortened(last.message.as_deref().unwrap_or("-"))
                ));
            }
            (Ended::AfterFinal, Some(_)) => return Ok(()),
            (Ended::OverTime, _) => return Err(format!("it did not end within {:?}", self.total)),
            _ => {}
        }
        match (self.exited.code, self.exited.signal) {
            (Some(0), _) => {}
            (Some(code), _) => return Err(format!("it exited with status {code}")),
            (None, signal) => return Err(format!("signal {} ended it", signal.unwrap_or_default())),
        }
        if last.is_some() {
            return Ok(());
        }
        if manifest.judge == Judge::Final {
            return Err("it exited with status 0 but without a final event".to_owned());
        }
        let error = self.events.iter().rev().find_map(|event| match event {
            MappedEvent::Error(message) => Some(message),
            _ => None,
        });
        error.map_or(Ok(()), |message| Err(format!("status 0 after an error: {}", shortened(message))))
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
        format!("{how}{who}, {:.1} s, {} requests", self.total.as_secs_f64(), self.model_calls())
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

/// At most 200 characters.
pub fn shortened(text: &str) -> String {
    let text = text.replace('\n', " ");
    if text.chars().count() <= 200 { text } else { text.chars().take(200).chain(['…']).collect() }
}
