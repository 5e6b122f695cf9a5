//! Security events: what somebody should hear of. Facts about ids, counts and names; what comes from a sandbox or a
//! repository is cut and made plain here, whoever writes it.

use std::fmt::Write as _;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

/// Unusual system calls refused in one attempt that make a burst.
pub const BURST: i64 = 20;

/// Bytes of a text.
const TEXT: usize = 256;
/// Items of a list, and fields of an object.
const ITEMS: usize = 32;
/// Objects and lists in one another.
const DEPTH: usize = 4;
/// Values in all.
const VALUES: usize = 48;

/// What happened. `docs/webhooks.md` has the same table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum SecurityEventKind {
    /// An address failed to authenticate too often and is shut out for a minute.
    #[serde(rename = "auth.repeated_failures")]
    RepeatedAuthFailures,
    /// The calls for a run's budget are at an end, and the run with them.
    #[serde(rename = "budget.exhausted")]
    BudgetExhausted,
    /// A runner started although its host has a danger: the operator accepted it.
    #[serde(rename = "host.danger_accepted")]
    HostDangerAccepted,
    /// A runner refused to start: its host has a danger that nobody accepted.
    #[serde(rename = "host.danger_refused")]
    HostDangerRefused,
    /// A repository brought configuration for CLIs that nobody approved; a run was begun without it.
    #[serde(rename = "repository.quarantined")]
    RepositoryQuarantined,
    /// A sandbox was not what it was asked to be; no CLI was started in it.
    #[serde(rename = "sandbox.containment_refused")]
    ContainmentRefused,
    /// A sandbox was refused 20 or more system calls that ordinary programs do not make.
    #[serde(rename = "sandbox.refused_burst")]
    RefusedBurst,
    /// A CLI floods the kernel with calls that are refused; answers to it are held back.
    #[serde(rename = "sandbox.flood")]
    Flood,
    /// The keeper of refused calls, or its listener, was lost under a run: nobody counts any more.
    #[serde(rename = "sandbox.refusals_interrupted")]
    RefusalsInterrupted,
    /// A place outside the database does not take the trail's checkpoints.
    #[serde(rename = "trail.anchor_failed")]
    AnchorFailed,
    /// The sequencer has stopped for another reason: no checkpoint is made.
    #[serde(rename = "trail.checkpoint_failed")]
    CheckpointFailed,
    /// The audit trail is not what the sequencer or an anchor knows it to be.
    #[serde(rename = "trail.inconsistent")]
    TrailInconsistent,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Low,
    /// To be looked at.
    Medium,
    /// To be looked at now.
    High,
    /// Something that must hold does not.
    Critical,
}

/// There is no such kind or severity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is one of {0}")]
pub struct Unknown(String);

impl SecurityEventKind {
    pub const ALL: [Self; 12] = [
        Self::RepeatedAuthFailures,
        Self::BudgetExhausted,
        Self::HostDangerAccepted,
        Self::HostDangerRefused,
        Self::RepositoryQuarantined,
        Self::ContainmentRefused,
        Self::RefusedBurst,
        Self::Flood,
        Self::RefusalsInterrupted,
        Self::AnchorFailed,
        Self::CheckpointFailed,
        Self::TrailInconsistent,
    ];

    /// As it is stored and sent.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RepeatedAuthFailures => "auth.repeated_failures",
            Self::BudgetExhausted => "budget.exhausted",
            Self::HostDangerAccepted => "host.danger_accepted",
            Self::HostDangerRefused => "host.danger_refused",
            Self::RepositoryQuarantined => "repository.quarantined",
            Self::ContainmentRefused => "sandbox.containment_refused",
            Self::RefusedBurst => "sandbox.refused_burst",
            Self::Flood => "sandbox.flood",
            Self::RefusalsInterrupted => "sandbox.refusals_interrupted",
            Self::AnchorFailed => "trail.anchor_failed",
            Self::CheckpointFailed => "trail.checkpoint_failed",
            Self::TrailInconsistent => "trail.inconsistent",
        }
    }

    pub const fn severity(self) -> Severity {
        match self {
            Self::BudgetExhausted => Severity::Low,
            Self::RepeatedAuthFailures
            | Self::HostDangerRefused
            | Self::RepositoryQuarantined
            | Self::AnchorFailed => Severity::Medium,
            Self::HostDangerAccepted
            | Self::RefusedBurst
            | Self::Flood
            | Self::RefusalsInterrupted
            | Self::CheckpointFailed => Severity::High,
            Self::ContainmentRefused | Self::TrailInconsistent => Severity::Critical,
        }
    }
}

impl Severity {
    pub const ALL: [Self; 4] = [Self::Low, Self::Medium, Self::High, Self::Critical];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    /// As it is stored: 1 to 4.
    pub const fn rank(self) -> i16 {
        match self {
            Self::Low => 1,
            Self::Medium => 2,
            Self::High => 3,
            Self::Critical => 4,
        }
    }

    pub fn of_rank(rank: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|severity| severity.rank() == rank)
    }
}

impl FromStr for SecurityEventKind {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        let known = || Unknown(Self::ALL.map(Self::as_str).join(", "));
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(known)
    }
}

impl FromStr for Severity {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        let known = || Unknown(Self::ALL.map(Self::as_str).join(", "));
        Self::ALL.into_iter().find(|severity| severity.as_str() == text).ok_or_else(known)
    }
}

impl std::fmt::Display for SecurityEventKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One event, harmless to store and to send.
#[derive(Debug, Clone, PartialEq)]
pub struct SecurityEvent {
    pub id: Uuid,
    pub kind: SecurityEventKind,
    subject: String,
    details: Value,
    pub task: Option<Uuid>,
    pub run: Option<Uuid>,
    /// Of several with the same text and kind the first one counts.
    pub once: Option<String>,
}

impl SecurityEvent {
    /// `subject` is kind and id of what it is about, such as `run:0190…`. `details` holds identifiers, counts and names,
    /// never a prompt, a secret or output.
    pub fn new(kind: SecurityEventKind, subject: &str, details: &Value) -> Self {
        let mut left = VALUES;
        let details = match plain_value(details, DEPTH, &mut left) {
            object @ Value::Object(_) => object,
            other => Value::Object(Map::from_iter([("value".to_owned(), other)])),
        };
        let subject = plain(subject);
        Self { id: Uuid::now_v7(), kind, subject, details, task: None, run: None, once: None }
    }

    pub fn of_run(self, task: Uuid, run: Uuid) -> Self {
        Self { task: Some(task), run: Some(run), ..self }
    }

    pub fn once(self, once: String) -> Self {
        Self { once: Some(once), ..self }
    }

    pub fn subject(&self) -> &str {
        &self.subject
    }

    pub fn details(&self) -> &Value {
        &self.details
    }
}

/// A text of bounded length in which nothing acts on whoever shows it: what is not printed is spelled out, and so is
/// what turns the direction of writing.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if out.len() >= TEXT {
            out.push('…');
            break;
        }
        let turns = matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                                 | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}');
        if c.is_control() || turns {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

/// `left` goes down by one for each value, whatever it is: so nothing grows by nesting.
fn plain_value(value: &Value, depth: usize, left: &mut usize) -> Value {
    *left = left.saturating_sub(1);
    let cut = || Value::String("…".to_owned());
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        Value::String(text) => Value::String(plain(text)),
        Value::Array(_) | Value::Object(_) if depth == 0 => cut(),
        Value::Array(items) => {
            let mut kept = Vec::new();
            for item in items.iter().take(ITEMS) {
                if *left == 0 {
                    break;
                }
                kept.push(plain_value(item, depth - 1, left));
            }
            if kept.len() < items.len() {
                kept.push(Value::String(format!("… {} more", items.len() - kept.len())));
            }
            Value::Array(kept)
        }
        Value::Object(fields) => {
            let mut kept = Map::new();
            for (name, value) in fields.iter().take(ITEMS) {
                if *left == 0 {
                    kept.insert("…".to_owned(), cut());
                    break;
                }
                kept.insert(plain(name), plain_value(value, depth - 1, left));
            }
            Value::Object(kept)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_has_one_spelling() {
        for kind in SecurityEventKind::ALL {
            assert_eq!(json!(kind), kind.as_str());
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        for severity in Severity::ALL {
            assert_eq!(json!(severity), severity.as_str());
            assert_eq!(severity.as_str().parse(), Ok(severity));
            assert_eq!(Severity::of_rank(severity.rank()), Some(severity));
        }
        assert!("sandbox".parse::<SecurityEventKind>().unwrap_err().to_string().contains("sandbox.flood"));
    }

    /// Kind, severity and words of each row.
    #[test]
    fn the_page_has_the_same_table() {
        let (page, source) = (include_str!("../../docs/webhooks.md"), include_str!("security_event.rs"));
        let rows: Vec<Vec<&str>> = page
            .lines()
            .filter(|line| line.starts_with("| `") && line.contains('.') && !line.contains("KAGE_"))
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        assert_eq!(rows.len(), SecurityEventKind::ALL.len());
        for (kind, row) in SecurityEventKind::ALL.into_iter().zip(rows) {
            assert_eq!(row[..2], [format!("`{kind}`").as_str(), kind.severity().as_str()]);
            let documented = format!("    /// {}\n    #[serde(rename = \"{kind}\")]", row[2]);
            assert!(source.contains(&documented), "{documented}");
        }
    }

    #[test]
    fn what_hostile_output_brings_is_cut_and_made_plain() {
        let nested = json!({ "a": { "b": { "c": { "d": { "e": "deep" } } } } });
        let hostile = json!({
            "name": "a\u{0}b\u{1b}]0;x\u{7}\r\n\u{202e}fdp\u{feff}",
            "long": "ä".repeat(100_000),
            "list": vec!["x"; 1000],
            "nested": nested,
            "\u{1b}[2J": 1,
        });
        let event = SecurityEvent::new(SecurityEventKind::Flood, "run:\n\u{0}", &hostile);
        assert_eq!(event.subject(), "run:\\u{a}\\u{0}");
        let details = event.details();
        assert_eq!(details["name"], "a\\u{0}b\\u{1b}]0;x\\u{7}\\u{d}\\u{a}\\u{202e}fdp\\u{feff}");
        assert_eq!(details["long"].as_str().unwrap().chars().count(), 129);
        assert_eq!(details["list"].as_array().unwrap().len(), 33);
        assert_eq!(details["list"][32], "… 968 more");
        assert_eq!(details["nested"]["a"]["b"]["c"], "…");
        assert_eq!(details["\\u{1b}[2J"], 1);
        let text = details.to_string();
        assert!(!text.contains('\u{1b}') && !text.contains("\\u0000"), "{text}");
        // However it is built, it fits where it is stored.
        let name = "\u{e0000}\"".repeat(1000);
        let deep = |inner: Value| json!({ "a": vec![inner.clone(); 40], "b": vec![inner; 40], &name: 1 });
        let wide = deep(deep(deep(json!({ &name: &name }))));
        let event = SecurityEvent::new(SecurityEventKind::Flood, &name, &wide);
        let length = event.details().to_string().len();
        assert!(length < 60_000 && event.subject().len() < 1024, "{length}");
    }
}
