//! What of a task is no longer kept.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

pub const LOG: &str = "log";
pub const EVENTS: &str = "events";
pub const RESULTS: &str = "results";

/// Something that the operator's rules of retention have let go. The task, its runs and how they ended stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LetGo {
    /// `log`: output; `events`: all other events; `results`: patches, lists of files, findings and branches.
    pub what: String,
    /// `age` or `size`.
    pub rule: String,
    pub at: DateTime<Utc>,
}

/// `let_go`: told on a stream, without an id, where a part of its events is no longer there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Missing {
    pub task_id: Uuid,
    #[serde(flatten)]
    pub let_go: LetGo,
}

impl LetGo {
    /// In a line: `the output was let go on 2026-11-23 02:10 UTC, for its age`.
    pub fn words(&self) -> String {
        let what = match self.what.as_str() {
            LOG => "output was",
            EVENTS => "events were",
            RESULTS => "results were",
            _ => "something was",
        };
        let at = self.at.format("%Y-%m-%d %H:%M UTC");
        let why = if self.rule == "size" { "to make room" } else { "for its age" };
        format!("the {what} let go on {at}, {why}")
    }
}

/// The one of these that is `what`.
pub fn find<'a>(all: &'a [LetGo], what: &str) -> Option<&'a LetGo> {
    all.iter().find(|one| one.what == what)
}
