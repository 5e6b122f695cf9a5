//! The live view: one line a run with its state, the time it has taken, and its last output.

use std::io;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use console::style;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::lines::Lines;
use crate::cli::view::{View, notice};
use crate::cli::{escape, output};
use crate::client::event::{self, Payload};
use crate::client::follow::Update;
use crate::domain::run::RunState;
use crate::wire::event::Log;
use crate::wire::run::Run;

/// More than any terminal is wide.
const MAX_SHOWN: usize = 1024;

#[derive(Debug)]
pub struct LiveView {
    bars: MultiProgress,
    rows: Vec<Row>,
    clock: ServerClock,
}

/// The server's time, told by its own events: the clocks of two machines need not agree.
#[derive(Debug)]
struct ServerClock {
    at: DateTime<Utc>,
    seen: Instant,
}

impl ServerClock {
    fn now(&self) -> DateTime<Utc> {
        self.at + TimeDelta::from_std(self.seen.elapsed()).unwrap_or_default()
    }
}

#[derive(Debug)]
struct Row {
    name: String,
    bar: ProgressBar,
    state: RunState,
    started: Option<DateTime<Utc>>,
    finished: Option<DateTime<Utc>>,
    stdout: Lines,
    stderr: Lines,
    /// The last output, harmless already.
    last: String,
}

impl LiveView {
    /// `now`: the server's time, as the task's newest timestamp tells it.
    pub fn new(runs: &[Run], now: DateTime<Utc>) -> Self {
        let mut view = Self {
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
            rows: Vec::new(),
            clock: ServerClock { at: now, seen: Instant::now() },
        };
        for run in runs {
            view.row(&run.name);
        }
        view
    }

    fn row(&mut self, name: &str) -> &mut Row {
        let at = match self.rows.iter().position(|row| row.name == name) {
            Some(at) => at,
            None => {
                let bar = self.bars.add(ProgressBar::new_spinner());
                bar.set_style(row_style());
                self.rows.push(Row {
                    name: name.to_owned(),
                    bar,
                    state: RunState::Queued,
                    started: None,
                    finished: None,
                    stdout: Lines::default(),
                    stderr: Lines::default(),
                    last: String::new(),
                });
                self.rows.len() - 1
            }
        };
        &mut self.rows[at]
    }

    fn draw(&self) {
        let widest = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        for row in &self.rows {
            row.bar.set_message(row.text(widest, self.clock.now()));
        }
    }

    fn say(&self, text: &str) -> io::Result<()> {
        self.bars.println(escape::line(text))
    }
}

fn row_style() -> ProgressStyle {
    // A template that is written here either parses always or never; the test below shows it.
    ProgressStyle::with_template("{spinner} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

impl Row {
    fn log(&mut self, log: &Log) -> io::Result<()> {
        let bytes = event::log_bytes(log).map_err(io::Error::other)?;
        let lines = if log.stream == "stderr" { &mut self.stderr } else { &mut self.stdout };
        let mut newest: Option<Vec<u8>> = None;
        lines.push(&bytes, |line| {
            // An agent's own events are told by `progress`, in words.
            let for_a_program = line.starts_with(b"{\"");
            if !for_a_program && line.iter().any(|byte| !byte.is_ascii_whitespace()) {
                let newest = newest.get_or_insert_default();
                newest.clear();
                newest.extend_from_slice(&line[..line.len().min(MAX_SHOWN)]);
            }
        });
        let partial = lines.partial();
        if !partial.starts_with(b"{\"") && partial.iter().any(|byte| !byte.is_ascii_whitespace()) {
            newest = Some(partial[..partial.len().min(MAX_SHOWN)].to_vec());
        }
        if let Some(line) = newest {
            self.last.clear();
            escape::push_line(&line, &mut self.last);
        }
        Ok(())
    }

    fn text(&self, widest: usize, now: DateTime<Utc>) -> String {
        let elapsed = self
            .started
            .map(|started| output::span(self.finished.unwrap_or(now) - started))
            .unwrap_or_default();
        let state = format!("{:<16}", self.state.as_str());
        let state = match self.state {
            RunState::Succeeded => style(state).green(),
            RunState::Queued => style(state).dim(),
            state_now if state_now.has_ended() => style(state).red(),
            _ => style(state).cyan(),
        };
        let name = escape::line(&self.name);
        format!("{name:<widest$}  {} {elapsed:>12}  {}", state.for_stderr(), self.last.replace('\t', " "))
    }
}

impl View for LiveView {
    fn update(&mut self, update: &Update) -> io::Result<()> {
        if let Some(text) = notice(update) {
            self.say(&text)?;
        }
        match update {
            Update::Connected(connected) => {
                self.clock = ServerClock { at: connected.timestamp, seen: Instant::now() };
            }
            Update::Event(event) => match &event.payload {
                Payload::Log(log) => self.row(&log.run).log(log)?,
                Payload::State(state) => {
                    let row = self.row(&state.run);
                    row.state = state.state;
                    match state.state {
                        RunState::Queued => row.started = None,
                        RunState::Preparing => row.started = Some(state.timestamp),
                        _ => _ = row.started.get_or_insert(state.timestamp),
                    }
                    row.finished = state.state.has_ended().then_some(state.timestamp);
                    if let Some(reason) = &state.reason {
                        row.last = escape::line(reason);
                    }
                }
                Payload::Progress(progress) if !progress.message.is_empty() => {
                    self.row(&progress.cli_name).last = escape::line(&progress.message);
                }
                Payload::Result(ended) => {
                    let row = self.row(&ended.run.name);
                    row.state = ended.run.state;
                    (row.started, row.finished) = (ended.run.started_at, ended.run.finished_at);
                    if let Some(error) = &ended.run.error {
                        row.last = escape::line(error);
                    }
                }
                _ => {}
            },
            Update::Gap(_) | Update::LetGo(_) | Update::Reconnecting { .. } => {}
        }
        Ok(())
    }

    fn tick(&mut self) {
        self.draw();
        for row in &self.rows {
            if !row.state.has_ended() {
                row.bar.tick();
            }
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        for row in &self.rows {
            row.bar.finish_and_clear();
        }
        self.bars.clear()
    }
}

/// How often the view is drawn.
pub const TICK: Duration = Duration::from_millis(150);

#[cfg(test)]
mod tests {
    use super::*;

    fn log(text: &str) -> Log {
        Log {
            run: "shell".to_owned(),
            attempt: 1,
            stream: "stdout".to_owned(),
            offset: 0,
            text: text.to_owned(),
            base64: None,
        }
    }

    #[test]
    fn the_template_parses() {
        assert!(ProgressStyle::with_template("{spinner} {wide_msg}").is_ok());
    }

    #[test]
    fn a_row_shows_the_last_line_harmless() {
        let now = DateTime::from_timestamp(1000, 0).unwrap();
        let mut view = LiveView::new(&[], now);
        let row = view.row("shell");
        row.log(&log("first\nsecond\x1b[2J\n\n  \n")).unwrap();
        assert_eq!(row.last, "second\\x1b[2J");
        row.log(&log("half a ")).unwrap();
        row.log(&log("line")).unwrap();
        assert_eq!(row.last, "half a line");
        row.started = DateTime::from_timestamp(990, 0);
        let text = console::strip_ansi_codes(&row.text(7, now)).into_owned();
        assert!(text.starts_with("shell    queued") && text.contains("10.0 s  half a line"), "{text}");
    }
}
