//! Rendering: JSON for machines, tables and lines for people.

use std::io::{self, IsTerminal, Write};

use chrono::{DateTime, TimeDelta, Utc};
use console::measure_text_width;
use serde::Serialize;

use crate::cli::escape;

/// What every client command is told.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Globals {
    /// Print JSON and nothing else on standard output
    #[arg(long, global = true)]
    pub json: bool,
}

pub fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// A live view needs both streams on a terminal that can move its cursor.
pub fn can_draw() -> bool {
    stdout_is_terminal()
        && console::Term::stderr().features().is_attended()
        && console::Term::stderr().is_term()
}

/// Columns of the terminal on standard output; without one, as wide as needed.
pub fn width() -> usize {
    console::Term::stdout().size_checked().map_or(usize::MAX, |(_, columns)| usize::from(columns))
}

/// Prints one JSON value on a line of its own.
///
/// # Errors
/// When standard output cannot be written.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string(value)?;
    line(&escape::json(&text))
}

/// Prints a line that is already harmless.
///
/// # Errors
/// When standard output cannot be written.
pub fn line(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

/// Says something on standard error, hazards spelled out.
pub fn note(text: &str) {
    // Where standard error is closed there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{}", escape::line(text));
}

/// Writes text that is already harmless to standard error.
pub fn say(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Rows in columns, two spaces apart. Cells are made harmless; the last column is cut at `width`.
pub fn table(header: &[&str], rows: &[Vec<String>], width: usize) -> String {
    let mut all: Vec<Vec<String>> = Vec::with_capacity(rows.len() + 1);
    all.push(header.iter().map(|&cell| cell.to_owned()).collect());
    all.extend(rows.iter().map(|row| row.iter().map(|cell| escape::line(cell).replace('\t', " ")).collect()));
    let columns = header.len();
    let widths: Vec<usize> = (0..columns)
        .map(|column| all.iter().filter_map(|row| row.get(column)).map(|cell| measure_text_width(cell)).max())
        .map(Option::unwrap_or_default)
        .collect();
    let mut out = String::new();
    for row in &all {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if column + 1 < columns {
                let padding = widths[column].saturating_sub(measure_text_width(cell)) + 2;
                line.extend(std::iter::repeat_n(' ', padding));
            }
        }
        out.push_str(&console::truncate_str(line.trim_end(), width, "…"));
        out.push('\n');
    }
    out
}

/// The first line of a text.
pub fn first_line(text: &str) -> &str {
    text.trim_start().lines().next().unwrap_or_default()
}

pub fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// A span of time for a person: `4.2 s`, `3 min 07 s`, `2 h 05 min`.
pub fn span(span: TimeDelta) -> String {
    let millis = span.num_milliseconds().max(0);
    let seconds = millis / 1000;
    match seconds {
        0..60 => format!("{}.{} s", seconds, millis % 1000 / 100),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// USD, to a hundredth of a cent; `-` for nothing.
pub fn cost(usd: f64) -> String {
    if usd > 0.0 { format!("{usd:.4} USD") } else { "-".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_by_width_and_cells_are_harmless() {
        let rows =
            [vec!["日本".to_owned(), "x".to_owned()], vec!["a".to_owned(), "evil\x1b[2J\nnext".to_owned()]];
        let text = table(&["ID", "WHAT"], &rows, usize::MAX);
        assert_eq!(text, "ID    WHAT\n日本  x\na     evil\\x1b[2J\\x0anext\n");
        let cut = table(&["ID", "WHAT"], &rows, 8);
        assert!(cut.lines().all(|line| measure_text_width(line) <= 8), "{cut}");
    }

    #[test]
    fn spans_read_well() {
        for (millis, shown) in [
            (-5, "0.0 s"),
            (4250, "4.2 s"),
            (59_999, "59.9 s"),
            (187_000, "3 min 07 s"),
            (7_500_000, "2 h 05 min"),
        ] {
            assert_eq!(span(TimeDelta::milliseconds(millis)), shown);
        }
    }
}
