//! What a check found, item by item.

use serde::Serialize;

/// How much an item matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// Without it the image is not fit for use.
    Must,
    /// It will do, but somebody will be surprised.
    Should,
    /// For the reader.
    Note,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Passed,
    Failed,
    /// It could not be seen; the detail says why.
    NotMeasured,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    pub id: &'static str,
    /// What is expected, as a sentence.
    pub title: &'static str,
    pub need: Need,
    pub outcome: Outcome,
    /// What was seen.
    pub detail: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Bytes of the image, unpacked.
    pub image_bytes: u64,
    /// Milliseconds from the container's creation to the shim's first word.
    pub sandbox_ms: Option<u64>,
    /// Milliseconds from the CLI's start to its first byte of output.
    pub first_output_ms: Option<u64>,
    /// Milliseconds from the CLI's start to its first request to the model.
    pub first_request_ms: Option<u64>,
    /// Milliseconds from the CLI's start to its end, for a task of three turns.
    pub task_ms: Option<u64>,
    /// Most bytes of memory that the sandbox held, file cache included.
    pub memory_peak_bytes: Option<u64>,
    pub most_processes: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub cli: String,
    pub image: String,
    pub items: Vec<Item>,
    pub figures: Figures,
    /// Outside the worktree: `/tmp` and HOME.
    pub paths_written: Vec<String>,
    /// Names that it looked up.
    pub hosts_asked: Vec<String>,
}

impl Item {
    pub fn new(id: &'static str, need: Need, title: &'static str, seen: Result<String, String>) -> Self {
        let (outcome, detail) = match seen {
            Ok(detail) => (Outcome::Passed, detail),
            Err(detail) => (Outcome::Failed, detail),
        };
        Self { id, title, need, outcome, detail }
    }

    pub fn not_measured(id: &'static str, need: Need, title: &'static str, why: impl Into<String>) -> Self {
        Self { id, title, need, outcome: Outcome::NotMeasured, detail: why.into() }
    }

    fn mark(&self) -> &'static str {
        match (self.outcome, self.need) {
            (Outcome::Passed, Need::Note) => "note",
            (Outcome::Passed, _) => "ok",
            (Outcome::Failed, Need::Must) => "FAILED",
            (Outcome::Failed, Need::Should) => "warning",
            (Outcome::Failed, Need::Note) => "note",
            (Outcome::NotMeasured, _) => "?",
        }
    }

    /// One line, for people. What a hostile image put into it is not made harmless here.
    pub fn line(&self) -> String {
        let detail = if self.detail.is_empty() { String::new() } else { format!(": {}", self.detail) };
        format!("{:<8} {:<20} {}{detail}", self.mark(), self.id, self.title)
    }
}

impl Report {
    /// Whether every item that must hold does. One that could not be measured is no failure.
    pub fn passed(&self) -> bool {
        !self.items.iter().any(|item| item.need == Need::Must && item.outcome == Outcome::Failed)
    }

    /// The last lines, for people.
    pub fn summary(&self) -> Vec<String> {
        let count = |outcome: Outcome, need: Option<Need>| {
            self.items
                .iter()
                .filter(|item| item.outcome == outcome && (need == Some(item.need) || need.is_none()))
                .count()
        };
        let figures = &self.figures;
        let ms = |value: Option<u64>| value.map_or("?".to_owned(), |ms| format!("{ms} ms"));
        let megabytes = |bytes: u64| format!("{} MB", bytes / 1_000_000);
        vec![
            format!(
                "image {}; sandbox ready in {}; first output after {}, first request after {}, task done after {}; \
                 memory at most {}; at most {} processes",
                megabytes(figures.image_bytes),
                ms(figures.sandbox_ms),
                ms(figures.first_output_ms),
                ms(figures.first_request_ms),
                ms(figures.task_ms),
                figures.memory_peak_bytes.map_or("?".to_owned(), megabytes),
                figures.most_processes,
            ),
            format!(
                "{}: {} ({} failed, {} warnings, {} not measured)",
                self.cli,
                if self.passed() { "fit for use" } else { "NOT fit for use" },
                count(Outcome::Failed, Some(Need::Must)),
                count(Outcome::Failed, Some(Need::Should)),
                count(Outcome::NotMeasured, None),
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(items: Vec<Item>) -> Report {
        Report {
            cli: "x".into(),
            image: "sha256:0".into(),
            items,
            figures: Figures::default(),
            paths_written: Vec::new(),
            hosts_asked: Vec::new(),
        }
    }

    #[test]
    fn only_a_must_that_failed_fails() {
        let item = |need, seen| Item::new("id", need, "title", seen);
        let good = report(vec![
            item(Need::Must, Ok("fine".into())),
            item(Need::Should, Err("hm".into())),
            Item::not_measured("id", Need::Must, "title", "no way"),
        ]);
        assert!(good.passed());
        assert!(good.summary()[1].contains("fit for use (0 failed, 1 warnings, 1 not measured)"));
        let bad = report(vec![item(Need::Must, Err("broken".into()))]);
        assert!(!bad.passed());
        assert_eq!(bad.items[0].line(), "FAILED   id                   title: broken");
    }
}
