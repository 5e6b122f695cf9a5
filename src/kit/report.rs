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
    /// How many items a whole check of this image has.
    pub of: usize,
    /// Only a part was wanted: it says nothing of the rest.
    pub partial: bool,
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
        let verdict = match (self.passed(), self.partial) {
            (false, _) => "NOT fit for use",
            (true, true) => "what was checked holds",
            (true, false) => "fit for use",
        };
        vec![
            self.figures.line(),
            format!(
                "{}: {verdict} ({} of {}; {} failed, {}, {} not measured)",
                self.cli,
                self.items.len(),
                counted(self.of, "item", "items"),
                count(Outcome::Failed, Some(Need::Must)),
                counted(count(Outcome::Failed, Some(Need::Should)), "warning", "warnings"),
                count(Outcome::NotMeasured, None),
            ),
        ]
    }
}

impl Figures {
    /// Those that there are.
    fn line(&self) -> String {
        let megabytes = |bytes: u64| format!("{} MB", bytes / 1_000_000);
        let ms = |what: &str, value: Option<u64>| value.map(|ms| format!("{what} {ms} ms"));
        let processes = (self.most_processes > 0)
            .then(|| format!("at most {}", counted(self.most_processes, "process", "processes")));
        let parts = [
            Some(format!("image {}", megabytes(self.image_bytes))),
            ms("sandbox ready in", self.sandbox_ms),
            ms("first output after", self.first_output_ms),
            ms("first request after", self.first_request_ms),
            ms("task done after", self.task_ms),
            self.memory_peak_bytes.map(|bytes| format!("memory at most {}", megabytes(bytes))),
            processes,
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

/// A number with its noun.
pub fn counted(count: usize, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(items: Vec<Item>) -> Report {
        Report {
            cli: "x".into(),
            image: "sha256:0".into(),
            items,
            of: 36,
            partial: false,
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
        assert_eq!(
            good.summary(),
            ["image 0 MB", "x: fit for use (3 of 36 items; 0 failed, 1 warning, 1 not measured)"]
        );
        let part = Report { partial: true, ..good };
        assert!(part.summary()[1].starts_with("x: what was checked holds (3 of 36 items; "));
        let bad = report(vec![item(Need::Must, Err("broken".into()))]);
        assert!(!bad.passed());
        assert_eq!(bad.items[0].line(), "FAILED   id                   title: broken");
    }
}
