//! Plain lines: `[run] text`. What the runs say goes to the stream that it came from, what there is to say about them
//! to standard error. Where a run's image reads its output, a person gets what it says and does in words, and not the
//! JSON that it printed. Always made harmless: what is piped today is read on a terminal tomorrow (`kage logs` gives
//! the bytes).

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::cli::lines::Lines;
use crate::cli::view::spoken::{JsonLines, Spoken};
use crate::cli::view::{View, notice, result};
use crate::cli::{escape, output};
use crate::client::event::{self, Payload};
use crate::client::follow::Update;
use crate::domain::run::{ProgressStatus, RunState};
use crate::wire::event::{Log, Notice, Progress};
use crate::wire::run::Run;

/// What one run says, as it wrote it or in words.
#[derive(Debug, Default)]
pub struct PlainView {
    /// What waits for its line end, by run and stream, with the attempt that wrote it.
    pending: BTreeMap<(String, String), (u32, Lines)>,
    /// The runs whose output is told in words, by name.
    spoken: BTreeMap<String, (JsonLines, Spoken)>,
    /// Output as the runs wrote it, and nothing of it in words.
    raw: bool,
    /// The last error that was told of a run, by its name.
    errors: BTreeMap<String, String>,
}

impl PlainView {
    /// In words where the run's image reads its output.
    pub fn of(runs: &[Run]) -> Self {
        let spoken = runs.iter().filter(|run| run.events).map(|run| (run.name.clone(), Default::default()));
        Self { spoken: spoken.collect(), ..Self::default() }
    }

    /// Lines as the runs wrote them.
    pub fn raw() -> Self {
        Self { raw: true, ..Self::default() }
    }

    fn log(&mut self, log: &Log) -> io::Result<()> {
        let bytes = event::log_bytes(log).map_err(io::Error::other)?;
        let key = (log.run.clone(), log.stream.clone());
        let (attempt, lines) = self.pending.entry(key).or_insert_with(|| (log.attempt, Lines::default()));
        let mut text = String::new();
        let prefix = format!("[{}] ", escape::line(&log.run));
        let mut spoken = self.spoken.get_mut(&log.run).filter(|_| log.stream == "stdout");
        let mut each = |line: &[u8], spoken: Option<&mut Spoken>| {
            push_prefixed(&prefix, line, &mut text);
            spoken.into_iter().for_each(|spoken| spoken.shown(line));
        };
        if std::mem::replace(attempt, log.attempt) != log.attempt {
            lines.finish(|line| each(line, None));
            spoken.iter_mut().for_each(|(json, _)| *json = JsonLines::default());
        }
        match spoken {
            Some((json, spoken)) => lines.push(&json.without(&bytes), |line| each(line, Some(&mut *spoken))),
            None => lines.push(&bytes, |line| each(line, None)),
        }
        write_to(&log.stream, &text)
    }

    fn progress(&mut self, progress: &Progress) -> io::Result<()> {
        let name = &progress.cli_name;
        let Some(activity) = &progress.activity else {
            // The end is told by the result.
            if matches!(progress.status, ProgressStatus::Working | ProgressStatus::Waiting) {
                output::note(&format!("[{name}] {}", progress.message));
            }
            return Ok(());
        };
        match self.spoken.get_mut(name) {
            Some((_, spoken)) => {
                let prefix = format!("[{}] ", escape::line(name));
                let mut text = String::new();
                for line in spoken.words(activity, &progress.message).lines() {
                    push_prefixed(&prefix, line.as_bytes(), &mut text);
                }
                write_to("stdout", &text)?;
            }
            None if self.raw => {}
            None => output::note(&format!("[{name}] {}", progress.message)),
        }
        Ok(())
    }

    /// Shows what waits for a line end; of one run, or of all.
    fn flush(&mut self, run: Option<&str>) -> io::Result<()> {
        for ((name, stream), (_, lines)) in &mut self.pending {
            if run.is_none_or(|run| run == name) {
                let mut text = String::new();
                let prefix = format!("[{}] ", escape::line(name));
                lines.finish(|line| push_prefixed(&prefix, line, &mut text));
                write_to(stream, &text)?;
            }
        }
        Ok(())
    }
}

fn push_prefixed(prefix: &str, line: &[u8], out: &mut String) {
    out.push_str(prefix);
    escape::push_line(line, out);
    out.push('\n');
}

fn write_to(stream: &str, text: &str) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    if stream == "stderr" {
        return io::stderr().lock().write_all(text.as_bytes());
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

impl View for PlainView {
    fn update(&mut self, update: &Update) -> io::Result<()> {
        if let Some(text) = notice(update) {
            output::note(&text);
        }
        let Update::Event(event) = update else { return Ok(()) };
        match &event.payload {
            Payload::Log(log) => self.log(log)?,
            // Later ones are told by the progress that comes with them.
            Payload::State(state) if state.state == RunState::Queued && state.attempt == 0 => {
                output::note(&format!("[{}] {}", state.run, state.state));
            }
            Payload::Progress(progress) if !progress.message.is_empty() => self.progress(progress)?,
            Payload::Error(Notice { run: Some(run), message, .. }) => {
                self.errors.insert(run.clone(), message.clone());
            }
            Payload::Result(ended) => {
                self.flush(Some(&ended.run.name))?;
                let told = self.errors.get(&ended.run.name).map(String::as_str);
                output::note(&format!("[{}] {}", ended.run.name, result(ended, told)));
            }
            _ => {}
        }
        Ok(())
    }

    fn tells_ends(&self) -> bool {
        true
    }

    fn finish(&mut self) -> io::Result<()> {
        self.flush(None)
    }
}
