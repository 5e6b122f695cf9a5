//! Ways to show a task that is being watched: [`live`] on a terminal, [`plain`] lines elsewhere,
//! [`raw`] bytes of one run, [`json`] for machines; [`spoken`] is how output becomes words.

pub mod json;
pub mod live;
pub mod plain;
pub mod raw;
pub mod spoken;

use std::io;

use crate::cli::output;
use crate::client::event::Payload;
use crate::client::follow::Update;
use crate::wire::event::{Notice, RunResult};
use crate::wire::run::Run;

/// One way to show a task's updates.
pub trait View {
    /// Shows an update.
    ///
    /// # Errors
    /// When the output cannot be written.
    fn update(&mut self, update: &Update) -> io::Result<()>;

    /// Time has passed.
    fn tick(&mut self) {}

    /// Whether it has told of each run how it ended, with its error.
    fn tells_ends(&self) -> bool {
        false
    }

    /// Shows what was held back and leaves the terminal as it was.
    ///
    /// # Errors
    /// When the output cannot be written.
    fn finish(&mut self) -> io::Result<()>;
}

/// What an update has to say in words whatever the view: warnings, errors, trouble on the line.
pub fn notice(update: &Update) -> Option<String> {
    match update {
        Update::Connected(_) => None,
        Update::Reconnecting { cause, delay } => {
            Some(format!("{cause}; trying again in {:.1} s", delay.as_secs_f64()))
        }
        Update::Gap(gap) => Some(format!(
            "[{}] {} bytes of {} are missing here (attempt {})",
            gap.run, gap.missing, gap.stream, gap.attempt
        )),
        Update::LetGo(gone) => Some(gone.words()),
        Update::Event(event) => match &event.payload {
            Payload::Warning(Notice { run, message, .. }) => Some(tagged(run.as_deref(), "warning", message)),
            Payload::Security(refused) => Some(tagged(Some(&refused.run), "security", &refused.message)),
            Payload::Error(Notice { run, message, .. }) => Some(tagged(run.as_deref(), "error", message)),
            _ => None,
        },
    }
}

fn tagged(run: Option<&str>, kind: &str, message: &str) -> String {
    match run {
        Some(run) => format!("[{run}] {kind}: {message}"),
        None => format!("{kind}: {message}"),
    }
}

/// A run's end in a line. Its warnings were told as they came, and so was `told`, an error.
pub fn result(result: &RunResult, told: Option<&str>) -> String {
    let run = &result.run;
    let mut text = run.state.to_string();
    if let Some(code) = run.exit_code.filter(|code| *code != 0) {
        text.push_str(&format!(" (exit {code})"));
    }
    if let (Some(from), Some(to)) = (run.started_at, run.finished_at) {
        text.push_str(&format!(" after {}", output::span(to - from)));
    }
    if run.branch.is_some() {
        text.push_str(&format!(", {}", changes(run)));
    }
    if let Some(branch) = &run.branch {
        text.push_str(&format!(", branch {branch}"));
    }
    if run.cost > 0.0 {
        text.push_str(&format!(", {}", output::cost(run.cost)));
    }
    if let Some(error) = run.error.as_deref().filter(|error| told != Some(*error)) {
        text.push_str(&format!(": {error}"));
    }
    text
}

/// How much a run changed: `2 files +10 -3`.
pub fn changes(run: &Run) -> String {
    let files = if run.files_changed == 1 { "file" } else { "files" };
    format!("{} {files} +{} -{}", run.files_changed, run.insertions, run.deletions)
}
