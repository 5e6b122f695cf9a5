//! `kage diff`: what the runs changed.

use std::io::{self, Write};

use console::style;
use uuid::Uuid;

use crate::cli::exit::{CliError, Exit};
use crate::cli::lines::Lines;
use crate::cli::output::{self, Globals};
use crate::cli::{connect, escape, findings};
use crate::client::Client;
use crate::client::error::ClientError;
use crate::domain::name::Name;
use crate::wire::task::Task;

/// Show the changes of a task's runs as patches
///
/// Piped, the patch of one run (--run, where there are several) is fit for git apply; on a terminal it is coloured and made harmless.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The task's id
    id: Uuid,
    /// Only this run
    #[arg(long, value_name = "NAME")]
    run: Option<Name>,
}

/// # Errors
/// [`CliError`].
pub async fn run(args: Args, globals: &Globals) -> Result<Exit, CliError> {
    let client = connect::client()?;
    let task = client.task(args.id).await?;
    let names = connect::run_names(&task, args.run.as_ref())?;
    let mut shown = false;
    let mut refusal = None;
    for name in &names {
        if names.len() > 1 && !globals.json {
            output::note(&format!("==> {name} <=="));
        }
        let result = if globals.json {
            match client.diff(args.id, name).await {
                Ok(diff) => output::json(&diff).map_err(CliError::from),
                Err(error) => Err(error.into()),
            }
        } else {
            print(&client, args.id, name).await
        };
        match result {
            Ok(()) => {
                shown = true;
                if !globals.json {
                    note_findings(&client, &task, name).await;
                }
            }
            // A run without a patch does not keep the others from being seen.
            Err(CliError::Client(error @ ClientError::Refused { .. })) if names.len() > 1 => {
                output::note(&format!("[{name}] {error}"));
                refusal = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match refusal {
        Some(error) if !shown => Err(error.into()),
        _ => Ok(Exit::Success),
    }
}

/// What a patch does not show: what held the run, what it did not see, what was left out, what wants a look.
async fn note_findings(client: &Client, task: &Task, name: &Name) {
    let Some(run) = task.runs.iter().find(|run| run.name == name.as_str()) else { return };
    let harvest = findings::of_harvest(client, task.id, run).await;
    let unknown = |error| vec![format!("what was left out of its result cannot be had: {error}")];
    let own = findings::containment(run).into_iter().chain(findings::hidden(run));
    for line in own.chain(harvest.unwrap_or_else(unknown)) {
        output::note(&format!("[{name}] {line}"));
    }
}

async fn print(client: &Client, id: Uuid, run: &Name) -> Result<(), CliError> {
    let mut patch = client.patch(id, run).await?;
    let mut painter = output::stdout_is_terminal().then(Painter::default);
    while let Some(bytes) = patch.chunk().await? {
        match &mut painter {
            Some(painter) => painter.write(&bytes)?,
            None => io::stdout().lock().write_all(&bytes)?,
        }
    }
    if let Some(painter) = &mut painter {
        painter.finish()?;
    }
    io::stdout().lock().flush()?;
    Ok(())
}

/// Colours a patch line by line.
#[derive(Default)]
struct Painter {
    lines: Lines,
    hunk: Hunk,
}

/// Whether lines are content: a removed `-- x` must not pass for a header.
#[derive(Default)]
struct Hunk(bool);

impl Painter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut text = String::new();
        self.lines.push(bytes, |line| self.hunk.paint(line, &mut text));
        io::stdout().lock().write_all(text.as_bytes())
    }

    fn finish(&mut self) -> io::Result<()> {
        let mut text = String::new();
        self.lines.finish(|line| self.hunk.paint(line, &mut text));
        io::stdout().lock().write_all(text.as_bytes())
    }
}

impl Hunk {
    fn paint(&mut self, line: &[u8], out: &mut String) {
        let mut safe = String::new();
        escape::push_line(line, &mut safe);
        if line.starts_with(b"diff ") {
            self.0 = false;
        } else if line.starts_with(b"@@") {
            self.0 = true;
        }
        // A name may end in spaces.
        while !self.0 && safe.ends_with(' ') {
            let spaces = safe.len() - safe.trim_end_matches(' ').len();
            safe.truncate(safe.len() - spaces);
            safe.push_str(&"\\x20".repeat(spaces));
        }
        let painted = match line.first() {
            _ if !self.0 => style(safe).bold(),
            Some(b'+') => style(safe).green(),
            Some(b'-') => style(safe).red(),
            Some(b'@') => style(safe).cyan(),
            _ => style(safe),
        };
        out.push_str(&painted.to_string());
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_loses_nothing_but_its_hazards() {
        let patch =
            b"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n--- not a header\n+\x1b[31mred\n same\n";
        let mut out = String::new();
        let mut hunk = Hunk::default();
        let mut lines = Lines::default();
        lines.push(patch, |line| hunk.paint(line, &mut out));
        let plain = console::strip_ansi_codes(&out);
        assert_eq!(plain, String::from_utf8_lossy(patch).replace('\x1b', "\\x1b"));
    }
}
